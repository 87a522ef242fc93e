"""Official checkpoints to our layout and back; parity of what comes out is in test_parity.py."""

import argparse
import json
import os
import re

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForPreTraining

from crate_mae_hf import (
    CrateConfig,
    CrateForImageClassification,
    CrateMaeConfig,
    CrateMaeForImageClassification,
    CrateMaeForPreTraining,
    CrateMaeModel,
)
from crate_mae_hf.conversion import (
    CRATE,
    CRATE_MAE,
    compare_lambda,
    convert_checkpoint,
    convert_key,
    main,
    revert_checkpoint,
)
from crate_mae_hf.crate_patches import sincos_position_table


def make_official_crate(config: CrateConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A random state dict of a supervised CRATE."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in CrateForImageClassification(config).state_dict().items()}
    return {convert_key(key, CRATE.official_keys): torch.randn(shape, dtype=dtype) for key, shape in shapes.items()}


def make_official(config: CrateMaeConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A random state dict with the keys, shapes and position tables of the official code."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in CrateMaeForPreTraining(config).state_dict().items()}
    state_dict = {convert_key(key, CRATE_MAE.official_keys): torch.randn(shape) * 0.1 for key, shape in shapes.items()}
    width = config.hidden_size
    table = sincos_position_table(width, config.grid_size)
    state_dict |= {"decoder_pos_embed": table, "pos_embed": table.clone()}
    state_dict |= {"decoder_embed.weight": torch.randn(width, width), "decoder_embed.bias": torch.randn(width)}
    return {key: value.to(dtype) for key, value in state_dict.items()}


@pytest.fixture
def official(config) -> dict[str, torch.Tensor]:
    return make_official(config)


@pytest.fixture
def checkpoint(official, tmp_path):
    path = tmp_path / "official.pth"
    torch.save(official, path)
    return path


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("bare.pth", lambda weights: weights),
        ("model.pth", lambda weights: {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)}),
        ("module.pth.tar", lambda weights: {"state_dict": {f"module.{k}": v for k, v in weights.items()}}),
        ("bare.safetensors", lambda weights: weights),
    ],
)
def test_every_way_a_checkpoint_is_stored(name, wrap, official, config, pixel_values, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(wrap(official), tmp_path / name)
    report = convert_checkpoint(tmp_path / name, tmp_path / "out", num_attention_heads=4, ista_lambda=5)
    assert {row.official_key for row in report if row.status == "dropped"} == set(CRATE_MAE.unused)
    assert sum(row.tensors for row in report if row.status == "mapped") == len(official) - len(CRATE_MAE.unused)
    model, info = AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    expected = CrateMaeForPreTraining(CrateMaeConfig(**{**config.to_dict(), "ista_lambda": 5}))
    expected.load_state_dict(
        {convert_key(k, CRATE_MAE.keys): v for k, v in official.items() if k not in CRATE_MAE.unused}
    )
    noise = torch.rand(2, 16)
    assert torch.equal(model(pixel_values, noise=noise).logits, expected(pixel_values, noise=noise).logits)


# The settings that tensors do not tell are given as a user would have to.
@pytest.mark.parametrize(
    ("changes", "told", "dtype"),
    [
        ({}, {"num_attention_heads": 4}, torch.float32),
        ({"num_attention_heads": 1, "decoder_num_attention_heads": 1}, {}, torch.float32),
        ({"num_attention_heads": 1}, {"decoder_num_attention_heads": 4}, torch.float32),
        (
            {"image_size": [16, 48], "patch_size": [8, 4], "num_channels": 5, "decoder_num_attention_heads": 2},
            {"num_attention_heads": 4, "decoder_num_attention_heads": 2, "mask_ratio": 0.5, "norm_pix_loss": True},
            torch.float32,
        ),
        ({"num_channels": 1}, {"num_attention_heads": 4}, torch.bfloat16),
    ],
)
def test_round_trip_is_bit_equal(changes, told, dtype, config, tmp_path):
    config = CrateMaeConfig(**{**config.to_dict(), "decoder_num_attention_heads": 4, **changes})
    official = make_official(config, dtype)
    torch.save({"model": official}, tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours", **told)
    ours = CrateMaeConfig.from_pretrained(tmp_path / "ours")
    for name in (*changes, *told, "num_hidden_layers", "decoder_num_hidden_layers", "hidden_size"):
        assert getattr(ours, name) == told.get(name, getattr(config, name)), name
    assert ours.dtype == dtype
    for name in ("back.pth", "back.safetensors"):
        revert_checkpoint(tmp_path / "ours", tmp_path / name)
    for back in (
        torch.load(tmp_path / "back.pth", weights_only=True)["model"],
        load_file(tmp_path / "back.safetensors"),
    ):
        assert_official(back, official)


def assert_official(back: dict[str, torch.Tensor], official: dict[str, torch.Tensor]) -> None:
    """All used tensors bit-equal, the unused ones there and harmless: what a strict load wants."""
    assert back.keys() == official.keys()
    for key, value in back.items():
        assert value.dtype == official[key].dtype
        assert value.shape == official[key].shape
        assert key in CRATE_MAE.unused or torch.equal(value, official[key]), key
    assert torch.equal(back["pos_embed"], official["decoder_pos_embed"])
    tokens = torch.randn(2, back["decoder_embed.bias"].shape[0], dtype=back["decoder_embed.bias"].dtype)
    assert torch.equal(
        torch.nn.functional.linear(tokens, back["decoder_embed.weight"], back["decoder_embed.bias"]), tokens
    )


def test_round_trip_of_base_by_command(tmp_path, capsys):
    official = make_official(CrateMaeConfig.from_size("base"))
    torch.save(official, tmp_path / "base.pth")
    main([str(tmp_path / "base.pth"), str(tmp_path / "ours"), "--size", "base"])
    table = capsys.readouterr().out
    assert re.search(r"mapped +blocks\.\{i\}\.layers\.0\.1\.fn\.weight +crate_mae\.layers\.\{i\}\S+ +12\n", table)
    assert re.search(r"dropped +pos_embed +never read", table)
    assert "ista_lambda=0.5" in table
    assert CrateMaeConfig.from_pretrained(tmp_path / "ours").num_attention_heads == 12
    main([str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--reverse"])
    assert_official(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official)


@pytest.mark.parametrize(
    ("image_size", "picture", "num_channels"), [(32, (50, 40), 3), ([16, 48], (50, 40), 3), (32, (50, 40), 1)]
)
def test_image_processor_fits_the_model(image_size, picture, num_channels, config, tmp_path):
    config = CrateMaeConfig(**{**config.to_dict(), "image_size": image_size, "num_channels": num_channels})
    torch.save(make_official(config), tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", num_attention_heads=4)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixel_values = processor(PIL.Image.new("RGB", picture), return_tensors="pt").pixel_values
    CrateMaeModel.from_pretrained(tmp_path / "out")(pixel_values)


def test_standard_image_size_has_the_standard_processor(tmp_path):
    config = CrateMaeConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    torch.save(make_official(config), tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", num_attention_heads=4)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.to_dict() == type(processor)().to_dict() | {"auto_map": processor.auto_map}


def test_compare_lambda(checkpoint, tmp_path, capsys):
    generator = np.random.default_rng(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for name in [f"{i}.png" for i in range(17)] + ["more/grey.png"]:
        shape = (40, 40) if "grey" in name else (40, 50, 3)
        PIL.Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "images" / name)
    options = ["--num_attention_heads", "4", "--compare_lambda", "0.1", "5", "--images", str(tmp_path / "images")]
    main([str(checkpoint), str(tmp_path / "out"), *options])
    table = capsys.readouterr().out
    comparison = json.loads((tmp_path / "out" / "lambda_comparison.json").read_text())
    assert comparison["images"] == 18
    assert comparison["masked_loss"]["0.1"] != comparison["masked_loss"]["5.0"]
    for value, loss in comparison["masked_loss"].items():
        assert re.search(rf"{value} +{loss:.6f}\n", table)
    # The same masks each time, and a loss that is the model's own.
    images = [tmp_path / "images" / "0.png"]
    (loss,) = compare_lambda(tmp_path / "out", [0.1], images).values()
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out", ista_lambda=0.1)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    expected = model(processor(PIL.Image.open(images[0]), return_tensors="pt").pixel_values, noise=noise).loss
    assert loss == expected.item()


class Code:
    """Runs a command when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncate_old_format(path, official, length):
    torch.save(official, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:length])


def spoil(path, official):
    """Write each kind of bad checkpoint, as (function, what the message has to say)."""
    width = official["cls_token"].shape[2]
    vit = {"blocks.0.attn.qkv.weight": torch.zeros(3 * width, width), "cls_token": official["cls_token"]}
    vit_pytorch = {
        "pos_embedding": torch.zeros(1, 17, width),
        "transformer.layers.0.0.to_qkv.weight": torch.zeros(width),
    }
    crate = {"pos_embedding": torch.zeros(1, 17, width), "to_patch_embedding.1.weight": torch.zeros(width)}
    without = {key: value for key, value in official.items() if key != "blocks.1.layers.0.1.fn.weight"}
    return {
        "missing file": (lambda: None, "does not exist"),
        "truncated": (lambda: path.write_bytes(path.read_bytes()[:-2000]), "damaged, cut short"),
        "web page": (lambda: path.write_text("<!DOCTYPE html><html>"), "web page"),
        "empty": (lambda: path.write_bytes(b""), "damaged, cut short"),
        "old format, truncated": (lambda: truncate_old_format(path, official, 2000), "damaged, cut short"),
        "old format, truncated late": (lambda: truncate_old_format(path, official, -100), "damaged, cut short"),
        "code": (lambda: torch.save({"model": Code(path.with_name("pwned"))}, path), r"may run code .*mkdir"),
        "numbers": (lambda: torch.save({"model": [1, 2]}, path), "no state dict"),
        "vit_mae": (lambda: torch.save({"model": vit}, path), "ViT or ViTMAE in the layout of MAE"),
        "hf vit_mae": (lambda: torch.save({"vit.embeddings.cls_token": official["cls_token"]}, path), "Transformers"),
        "vit-pytorch": (lambda: torch.save(vit_pytorch, path), "ViT in the layout of vit-pytorch"),
        "part of a CRATE": (lambda: torch.save(crate, path), "no `to_patch_embedding.2.weight`.*supervised CRATE"),
        "our CRATE": (lambda: torch.save({"crate.layers.0.x": torch.zeros(4)}, path), "already"),
        "ours": (lambda: torch.save({"crate_mae.layernorm.weight": torch.zeros(4)}, path), "already"),
        "another": (lambda: torch.save({"conv1.weight": torch.zeros(4)}, path), "not one of CRATE-MAE"),
        "missing": (lambda: torch.save(without, path), r"missing +blocks\.1\.layers\.0\.1\.fn\.weight .* 1$"),
        "unknown": (lambda: torch.save(official | {"norm2.bias": torch.zeros(1)}, path), r"unknown +norm2\.bias"),
        "shape": (
            lambda: torch.save(official | {"norm.bias": torch.zeros(31)}, path),
            r"wrong shape +norm\.bias +got \(31,\), needs \(32,\)",
        ),
        "positions": (
            lambda: torch.save(official | {"decoder_pos_embed": torch.randn(1, 17, width)}, path),
            "fixed sine-cosine table",
        ),
    }


@pytest.mark.parametrize("kind", spoil(None, {"cls_token": torch.zeros(1, 1, 32)}))
def test_bad_checkpoints_say_what_they_are(kind, official, checkpoint, tmp_path, capsys):
    make, message = spoil(checkpoint, official)[kind]
    if kind == "missing file":
        checkpoint.unlink()
    make()
    with pytest.raises(SystemExit, match=re.compile(f"^error: .*{message}", re.DOTALL | re.MULTILINE)):
        main([str(checkpoint), str(tmp_path / "out"), "--num_attention_heads", "4"])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "pwned").exists()


def test_bad_safetensors(tmp_path, official):
    path = tmp_path / "official.safetensors"
    save_file(official, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cannot be read as a \.safetensors file"):
        convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`num_attention_heads` cannot be read off"),
        ({"size": "huge"}, "`size` must be one of tiny, small, base, large"),
        ({"size": "base"}, "`hidden_size` 768, the checkpoint has 32"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must divide"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1"),
        ({"num_attention_heads": 1}, r"unknown +blocks\.2\.layers\.0\.0\.fn\.to_out\.0\.weight"),
        ({"num_attention_heads": 4, "ista_lambda": -1.0}, "`ista_lambda` must not be negative"),
        ({"num_attention_heads": 4, "mask_ratio": 1.0}, "`mask_ratio` must lie in"),
    ],
)
def test_bad_settings(settings, message, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint, tmp_path / "out", **settings)


def test_untold_heads_of_a_decoder_beside_a_single_head(config, tmp_path):
    config = CrateMaeConfig(**{**config.to_dict(), "num_attention_heads": 1, "decoder_num_attention_heads": 4})
    torch.save(make_official(config), tmp_path / "official.pth")
    with pytest.raises(ValueError, match="`decoder_num_attention_heads` cannot be read off"):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "out")


def test_nothing_is_overwritten(checkpoint, config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or an empty folder"):
        convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4)
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="must be a new file"):
        revert_checkpoint(tmp_path / "ours", checkpoint)


def test_reverse_needs_a_pre_training_checkpoint(config, tmp_path):
    CrateMaeForImageClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"lacks \d+ weights such as `decoder\."):
        revert_checkpoint(tmp_path / "classifier", tmp_path / "back.pth")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        revert_checkpoint(tmp_path, tmp_path / "back.pth")
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    with pytest.raises(ValueError, match="one of type 'vit_mae'"):
        revert_checkpoint(tmp_path, tmp_path / "back.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reverse", "--ista_lambda", "1"], "--reverse goes without --ista_lambda"),
        (["--compare_lambda", "1"], "go together"),
        (["--compare_lambda", "-1", "--images", "."], "must not be negative"),
        (["--size", "huge"], "invalid choice"),
    ],
)
def test_bad_command_lines(arguments, message, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err


def test_no_images_to_compare_on(checkpoint, tmp_path):
    options = ["--num_attention_heads", "4", "--compare_lambda", "1", "--images", str(tmp_path)]
    with pytest.raises(SystemExit, match="found none in"):
        main([str(checkpoint), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


# --- supervised CRATE


@pytest.fixture
def crate_config() -> CrateConfig:
    return CrateConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, num_labels=10
    )


@pytest.mark.parametrize(
    ("changes", "told", "dtype"),
    [
        ({}, {"num_attention_heads": 4}, torch.float32),
        ({"num_attention_heads": 1}, {}, torch.float32),
        ({"num_channels": 5, "patch_size": 4}, {"num_attention_heads": 4, "num_channels": 5}, torch.bfloat16),
        ({"ista_lambda": 5}, {"num_attention_heads": 4, "ista_lambda": 5}, torch.float32),
    ],
)
def test_crate_round_trip_is_bit_equal(changes, told, dtype, crate_config, tmp_path):
    config = CrateConfig(**{**crate_config.to_dict(), **changes})
    official = make_official_crate(config, dtype)
    save_file(official, tmp_path / "official.safetensors")
    report = convert_checkpoint(tmp_path / "official.safetensors", tmp_path / "ours", **told)
    assert {row.status for row in report} == {"mapped"}
    assert sum(row.tensors for row in report) == len(official)
    ours = CrateConfig.from_pretrained(tmp_path / "ours")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels"):
        assert getattr(ours, name) == getattr(config, name), name
    assert (ours.num_labels, ours.ista_lambda, ours.dtype) == (10, config.ista_lambda, dtype)
    revert_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], value) for key, value in official.items())


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_crate_of_a_published_size_by_command(size, tmp_path, capsys):
    official = make_official_crate(CrateConfig.from_size(size, num_labels=1000))
    torch.save({"state_dict": official, "arch": f"CRATE_{size}"}, tmp_path / "official.pth.tar")
    main([str(tmp_path / "official.pth.tar"), str(tmp_path / "ours"), "--size", size])
    output = capsys.readouterr().out
    assert re.search(r"mapped +transformer\.layers\.\{i\}\.1\.fn\.weight +crate\.layers\.\{i\}\S+ +12\n", output)
    assert "ista_lambda=0.1" in output
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert model.config.num_attention_heads == CrateConfig.from_size(size).num_attention_heads
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert (processor.size.shortest_edge, processor.crop_size.height) == (256, 224)
    main([str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--reverse"])
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert all(torch.equal(back[key], value) for key, value in official.items())


def test_crate_for_another_image_size(crate_config, tmp_path):
    official = make_official_crate(crate_config)
    torch.save(official, tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "same", num_attention_heads=4)
    main([str(tmp_path / "official.pth"), str(tmp_path / "out"), "--num_attention_heads", "4", "--image_size", "48"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixel_values = processor(
        PIL.Image.effect_mandelbrot((60, 50), (-2, -1, 1, 1), 20), return_tensors="pt"
    ).pixel_values
    assert (model.config.image_size, pixel_values.shape[2:]) == (48, (48, 48))
    same = AutoModelForImageClassification.from_pretrained(tmp_path / "same")
    expected = same(pixel_values, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model(pixel_values).logits, expected)
    assert expected.std() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`num_attention_heads` cannot be read off"),
        ({"size": "base"}, "`hidden_size` 768, the checkpoint has 32"),
        ({"num_attention_heads": 4, "num_channels": 5}, "`num_channels` must be such that the 192 values"),
        ({"num_attention_heads": 4, "num_channels": 0}, "`num_channels` must be such that"),
        (
            {"num_attention_heads": 4, "mask_ratio": 0.5},
            "`mask_ratio` does not go with a checkpoint of supervised CRATE",
        ),
        ({"num_attention_heads": 4, "image_size": 33}, "`image_size` must be divisible by `patch_size`"),
    ],
)
def test_bad_settings_of_a_crate(settings, message, crate_config, tmp_path):
    torch.save(make_official_crate(crate_config), tmp_path / "official.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_crates_that_cannot_be_converted(crate_config, tmp_path):
    path = tmp_path / "official.pth"
    official = make_official_crate(crate_config)
    for change, message in (
        ({"pos_embedding": torch.zeros(1, 16, 32)}, "must be that of a square grid of patches, got 15 patches"),
        ({"to_latent.weight": torch.zeros(1)}, r"unknown +to_latent\.weight +not a weight of supervised CRATE"),
        ({"cls_token": torch.zeros(1, 1, 31)}, r"wrong shape +cls_token +got \(1, 1, 31\), needs \(1, 1, 32\)"),
    ):
        torch.save({**official, **change}, path)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)
    torch.save(official, path)
    options = ["--num_attention_heads", "4", "--compare_lambda", "1", "--images", str(tmp_path)]
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(SystemExit, match="needs a masked loss"):
        main([str(path), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_settings_that_a_crate_mae_has_no_use_for(checkpoint, tmp_path):
    for name in ("image_size", "num_channels"):
        with pytest.raises(ValueError, match=f"`{name}` does not go with a checkpoint of CRATE-MAE"):
            convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4, **{name: 32})
