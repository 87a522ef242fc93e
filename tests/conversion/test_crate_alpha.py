"""Checkpoints of CRATE-alpha to our layout and back: from PyTorch, from JAX, and as the vision tower of a CLIPA."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from official import make_official
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from crate_mae_hf import CrateAlphaConfig, CrateAlphaForImageClassification, CrateAlphaModel
from crate_mae_hf.conversion import convert_checkpoint, revert_checkpoint
from crate_mae_hf.conversion.__main__ import main

D, K, LAYERS, PATCH, CLASSES = 32, 4, 2, 8, 10


@pytest.fixture
def alpha_config() -> CrateAlphaConfig:
    return CrateAlphaConfig(
        hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=K, image_size=32, patch_size=PATCH, num_labels=10
    )


@pytest.mark.parametrize(
    ("changes", "told", "dtype"),
    [
        ({}, {"num_attention_heads": 4}, torch.float32),
        ({"num_attention_heads": 1}, {}, torch.float32),
        ({"num_channels": 5, "patch_size": [8, 4], "image_size": [32, 16]}, {"num_attention_heads": 4}, torch.bfloat16),
        ({"overcomplete_ratio": 2, "ista_lambda": 5}, {"num_attention_heads": 4, "ista_lambda": 5}, torch.float32),
    ],
)
def test_round_trip_is_bit_equal(changes, told, dtype, alpha_config, tmp_path):
    config = CrateAlphaConfig(**{**alpha_config.to_dict(), **changes})
    official = make_official(config, dtype)
    save_file(official, tmp_path / "official.safetensors")
    report = convert_checkpoint(tmp_path / "official.safetensors", tmp_path / "ours", **told)
    assert {row.status for row in report} == {"mapped"}
    assert sum(row.tensors for row in report) == len(official)
    ours = CrateAlphaConfig.from_pretrained(tmp_path / "ours")
    for name in (*changes, "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "num_labels"):
        assert getattr(ours, name) == getattr(config, name), name
    assert ours.dtype == dtype
    revert_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], value) for key, value in official.items())


@pytest.mark.parametrize(
    ("size", "total", "num_labels", "heads"),
    [
        ("tiny", 8_318_175, 19_167, 3),  # the classes of ImageNet-21K
        pytest.param("base", 72_328_936, 1000, 12, marks=pytest.mark.slow),
    ],
)
def test_a_published_size_by_command(size, total, num_labels, heads, tmp_path, capsys):
    """A checkpoint of true shapes: it converts, loads, classifies, and goes back."""
    official = make_official(CrateAlphaConfig.from_size(size, num_labels=num_labels))
    assert sum(value.numel() for value in official.values()) == total
    torch.save(official, tmp_path / "official.pth")
    main([str(tmp_path / "official.pth"), str(tmp_path / "ours"), "--size", size])
    table = capsys.readouterr().out
    assert re.search(r"mapped +transformer\.layers\.\{i\}\.1\.fn\.D1 +crate_alpha\.layers\.\{i\}\S+ +12\n", table)
    assert "ista_lambda=0.1" in table
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(model) is CrateAlphaForImageClassification
    assert not any(info.values())
    assert (model.config.image_size, model.config.patch_size, model.config.num_attention_heads) == (224, 16, heads)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert (processor.size.shortest_edge, processor.crop_size.height) == (256, 224)
    classify = pipeline("image-classification", model=str(tmp_path / "ours"))
    image = PIL.Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20)
    with torch.no_grad():
        probs = model(**processor(image, return_tensors="pt")).logits.softmax(1)[0]
    best = classify(image)[0]
    assert best["label"] == model.config.id2label[probs.argmax().item()]
    assert best["score"] == pytest.approx(probs.max().item(), rel=1e-4)
    main([str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--reverse"])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], value) for key, value in official.items())


def test_another_image_size(alpha_config, tmp_path):
    torch.save(make_official(alpha_config), tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "same", num_attention_heads=4)
    main([str(tmp_path / "official.pth"), str(tmp_path / "out"), "--num_attention_heads", "4", "--image_size", "48"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    same = AutoModelForImageClassification.from_pretrained(tmp_path / "same")
    pixel_values = torch.randn(1, 3, 48, 48)
    expected = same(pixel_values, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model(pixel_values).logits, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"`num_attention_heads` cannot be read off .*tiny, small, base, large, huge"),
        ({"size": "huge"}, "`hidden_size` 1280, the checkpoint has 32"),
        ({"num_attention_heads": 4, "num_channels": 3}, "`num_channels` does not go with a checkpoint of CRATE-alpha"),
        ({"num_attention_heads": 4, "image_size": 33}, "`image_size` must be divisible by `patch_size`"),
    ],
)
def test_bad_settings(settings, message, alpha_config, tmp_path):
    torch.save(make_official(alpha_config), tmp_path / "official.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embedding": torch.zeros(1, 16, D)}, "must be that of a square grid of patches, got 15 patches"),
        ({"transformer.layers.1.1.fn.D2": torch.zeros(1)}, r"unknown +transformer\.layers\.\{?1?i?\}?\.1\.fn\.D2"),
        ({"cls_token": torch.zeros(1, 1, 31)}, r"wrong shape +cls_token +got \(1, 1, 31\), needs \(1, 1, 32\)"),
        ({"conv1.weight": torch.zeros(D)}, "no `conv1.weight` with 4 dimensions: it is not one of CRATE-alpha"),
        ({"transformer.layers.1.1.fn.D1": None}, r"missing +transformer\.layers\.1\.1\.fn\.D1"),
    ],
)
def test_checkpoints_that_do_not_fit(change, message, alpha_config, tmp_path):
    changed = {**make_official(alpha_config), **change}
    torch.save({key: value for key, value in changed.items() if value is not None}, tmp_path / "official.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", num_attention_heads=4)


@pytest.mark.parametrize("name", ["ista_residual", "decoupled_dictionary"])
def test_the_official_code_has_the_published_model_alone(name, alpha_config, tmp_path):
    setattr(alpha_config, name, False)
    CrateAlphaForImageClassification(alpha_config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=f"`folder` must hold a model with `{name}=True`.*not False"):
        revert_checkpoint(tmp_path / "ours", tmp_path / "back.pth")
    CrateAlphaModel(alpha_config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="`folder` must hold a classifier"):
        revert_checkpoint(tmp_path / "encoder", tmp_path / "back.pth")


# --- JAX


def make_jax() -> dict[str, np.ndarray]:
    """A checkpoint as Big Vision's code writes it, without the parts of the optimizer."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, D),
        "pos_embedding": (1, 17, D),
        "embedding/kernel": (PATCH, PATCH, 3, D),
        "embedding/bias": (D,),
        "encoder_norm/scale": (D,),
        "encoder_norm/bias": (D,),
        "head/kernel": (D, CLASSES),
        "head/bias": (CLASSES,),
    }
    for i in range(LAYERS):
        shapes |= {
            f"Transformer/encoderblock_{i}/{name}": shape
            for name, shape in {
                "LayerNorm_0/scale": (D,),
                "LayerNorm_0/bias": (D,),
                "MultiHeadDotProductSubspaceAttention_0/proj/kernel": (D, K, D // K),
                "MultiHeadDotProductSubspaceAttention_0/out/kernel": (K, D // K, D),
                "LayerNorm_1/scale": (D,),
                "LayerNorm_1/bias": (D,),
                "OvercompleteISTABlock_0/D": (D, 4 * D),
                "OvercompleteISTABlock_0/D1": (D, 4 * D),
            }.items()
        }
    generator = np.random.default_rng(0)
    return {f"params/{name}": generator.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def test_jax(tmp_path, capsys):
    arrays = make_jax()
    moments = {name.replace("params/", "opt/0/mu/"): np.zeros(value.shape, "V2") for name, value in arrays.items()}
    np.savez(tmp_path / "jax.npz", **arrays, **moments)
    main([str(tmp_path / "jax.npz"), str(tmp_path / "ours")])  # which tells the heads as well
    table = capsys.readouterr().out
    assert re.search(
        r"mapped +Transformer/encoderblock_\{i\}/OvercompleteISTABlock_0/D1 +crate_alpha\.layers\.\{i\}\S+ +2\n", table
    )
    assert "opt/" not in table
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert (model.config.num_attention_heads, model.config.num_labels, model.config.image_size) == (K, CLASSES, 32)

    # Each kernel does what it does in JAX.
    kernels = {name.removeprefix("params/"): torch.from_numpy(value) for name, value in arrays.items()}
    x, image = torch.randn(D), torch.randn(1, 3, 32, 32)
    for i, layer in enumerate(model.crate_alpha.layers):
        attention = f"Transformer/encoderblock_{i}/MultiHeadDotProductSubspaceAttention_0"
        heads = torch.einsum("d,dkp->kp", x, kernels[f"{attention}/proj/kernel"])
        torch.testing.assert_close(layer.mssa.subspace_proj(x).unflatten(0, (K, -1)), heads)
        together = torch.einsum("kp,kpd->d", heads, kernels[f"{attention}/out/kernel"])
        torch.testing.assert_close(layer.mssa.o_proj(heads.flatten()), together, atol=1e-4, rtol=1e-4)
        for name, dictionary in (("D", layer.ista.dictionary), ("D1", layer.ista.output_dictionary)):
            expected = kernels[f"Transformer/encoderblock_{i}/OvercompleteISTABlock_0/{name}"]
            assert torch.equal(dictionary, expected)
    patch = image[0, :, 8:16, 16:24].permute(1, 2, 0)  # second row, third column
    token = torch.einsum("hwc,hwcd->d", patch, kernels["embedding/kernel"]) + kernels["embedding/bias"]
    patches = model.crate_alpha.embeddings.patch_embeddings
    torch.testing.assert_close(patches(image)[0, 4 + 2], token, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.classifier[1](x), x @ kernels["head/kernel"] + kernels["head/bias"])
    assert torch.equal(model.classifier[0].weight, kernels["encoder_norm/scale"])


def test_jax_weights_in_bfloat16(tmp_path):
    arrays = make_jax()
    weights = torch.from_numpy(arrays["params/cls"]).bfloat16()
    arrays = {name: value.astype(np.float32).view(np.int16)[..., 1::2].view("V2") for name, value in arrays.items()}
    np.savez(tmp_path / "jax.npz", **arrays)
    convert_checkpoint(tmp_path / "jax.npz", tmp_path / "ours")
    cls_token = AutoModel.from_pretrained(tmp_path / "ours").embeddings.cls_token
    assert cls_token.dtype == torch.bfloat16
    torch.testing.assert_close(cls_token, weights, rtol=2**-7, atol=0)


def test_bad_files_of_jax(tmp_path):
    path, arrays = tmp_path / "jax.npz", make_jax()
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="`num_attention_heads` must be the checkpoint's, 4, got 2"):
        convert_checkpoint(path, tmp_path / "out", num_attention_heads=2)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is cut short"):
        convert_checkpoint(path, tmp_path / "out")
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"cannot be read as a \.npz file.*web page"):
        convert_checkpoint(path, tmp_path / "out")
    for bad in (np.array([{}], dtype=object), np.array(["text"])):
        np.savez(path, **{**arrays, "params/cls": bad})
        with pytest.raises(ValueError, match="must hold arrays of numbers alone"):
            convert_checkpoint(path, tmp_path / "out")
    vit = {"params/Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": np.zeros((D, D))}
    np.savez(path, **vit)
    with pytest.raises(ValueError, match="is a ViT in the layout of Big Vision"):
        convert_checkpoint(path, tmp_path / "out")
    np.savez(path, **{name: value for name, value in arrays.items() if "head" not in name})
    with pytest.raises(ValueError, match=r"has no `head/kernel` with 2 dimensions.* the keys cls, pos_embedding,"):
        convert_checkpoint(path, tmp_path / "out")


# --- CLIPA


def make_clipa() -> dict[str, torch.Tensor]:
    """A CLIPA: the vision tower, which holds U three times in each layer, and something of a text tower."""
    tower: dict[str, tuple[int, ...]] = {
        "class_embedding": (D,),
        "positional_embedding": (17, D),
        "conv1.weight": (D, 3, PATCH, PATCH),
        "ln_post.weight": (D,),
        "ln_post.bias": (D,),
        "proj": (D, 24),
    }
    for i in range(LAYERS):
        layer = {"attn.out_proj.weight": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (D, 4 * D)}
        layer |= {f"{norm}.{kind}": (D,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        tower |= {f"transformer.resblocks.{i}.{name}": shape for name, shape in layer.items()}
    state_dict = {f"visual.{name}": torch.randn(shape) for name, shape in tower.items()}
    for i in range(LAYERS):
        state_dict[f"visual.transformer.resblocks.{i}.attn.in_proj_weight"] = torch.randn(D, D).repeat(3, 1)
    text = ("logit_scale", "positional_embedding", "token_embedding.weight", "ln_final.weight", "text_projection")
    layers = [f"transformer.resblocks.{i}.mlp.c_fc.weight" for i in range(3)]
    return state_dict | {name: torch.randn(6, 6) for name in (*text, *layers)}


def test_clipa(tmp_path, capsys):
    clipa = make_clipa()
    torch.save(clipa, tmp_path / "clipa.pth")
    main([str(tmp_path / "clipa.pth"), str(tmp_path / "ours"), "--num_attention_heads", "4"])
    table = capsys.readouterr().out
    for line in (
        r"mapped +visual\.transformer\.resblocks\.\{i\}\.mlp\.c_fc +crate_alpha\.layers\.\{i\}\S+ +2\n",
        r"dropped +transformer\.resblocks\.\{i\}\.mlp\.c_fc\.weight +of the text tower\D+3\n",
        r"added +visual\.conv1\.bias +zero: the tower has no such bias +1\n",
    ):
        assert re.search(line, table)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert (model.config.num_labels, model.config.image_size, model.config.patch_size) == (24, 32, 8)
    pixel_values = torch.randn(2, 3, 32, 32)
    tokens = model.crate_alpha.embeddings.patch_embeddings(pixel_values)
    convolution = torch.nn.functional.conv2d(pixel_values, clipa["visual.conv1.weight"], stride=PATCH)
    torch.testing.assert_close(tokens, convolution.flatten(2).transpose(1, 2))
    for i, layer in enumerate(model.crate_alpha.layers):
        prefix = f"visual.transformer.resblocks.{i}"
        assert torch.equal(layer.mssa.subspace_proj.weight, clipa[f"{prefix}.attn.in_proj_weight"][:D])
        assert torch.equal(layer.ista.dictionary, clipa[f"{prefix}.mlp.c_fc"])
        assert torch.equal(layer.ista.output_dictionary, clipa[f"{prefix}.mlp.c_proj"])
    # The "classes" are the dimensions of the embedding that CLIPA compares with those of texts.
    outputs = model(pixel_values, output_hidden_states=True)
    norm = clipa["visual.ln_post.weight"], clipa["visual.ln_post.bias"]
    cls = torch.nn.functional.layer_norm(outputs.hidden_states[-1][:, 0], (D,), *norm, eps=1e-6)
    torch.testing.assert_close(outputs.logits, cls @ clipa["visual.proj"])


def test_bad_files_of_clipa(tmp_path):
    path, clipa = tmp_path / "clipa.pth", make_clipa()
    key = "visual.transformer.resblocks.1.attn.in_proj_weight"
    torch.save({**clipa, key: torch.randn(3 * D, D)}, path)
    with pytest.raises(ValueError, match=f"`{re.escape(key)}` must hold U of CRATE-alpha three times"):
        convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)
    clip = {name.replace("mlp.c_fc", "mlp.c_fc.weight"): value for name, value in clipa.items() if "visual" in name}
    torch.save(clip, path)
    with pytest.raises(ValueError, match="is a CLIP whose vision tower is a ViT"):
        convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)
    torch.save({name: value for name, value in clipa.items() if name != "visual.ln_post.bias"}, path)
    with pytest.raises(ValueError, match=r"missing +visual\.ln_post\.bias"):
        convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)
