"""The model against golden values of the official implementation (tests/reference)."""

import json
from pathlib import Path

import pytest
import torch
from golden import read_golden
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from crate_mae_hf import (
    CrateAlphaConfig,
    CrateAlphaForImageClassification,
    CrateConfig,
    CrateForImageClassification,
    CrateMaeConfig,
    CrateMaeForPreTraining,
)
from crate_mae_hf.conversion import CRATE, CRATE_ALPHA, CRATE_MAE, convert_checkpoint, convert_key, revert_checkpoint
from crate_mae_hf.crate_layers import CrateMSSA

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Reference:
    """A golden file, and the model with its weights, converted as a user converts them."""

    def __init__(self, name: str, folder: Path, attn_implementation: str):
        metadata, self.tensors = read_golden(name)
        official = json.loads(metadata["config"])
        torch.save({"model": self.group("checkpoint")}, folder / "official.pth")
        convert_checkpoint(
            folder / "official.pth",
            folder / "converted",
            num_attention_heads=official["num_heads"],
            decoder_num_attention_heads=official["decoder_num_heads"],
            ista_lambda=official["lambd"],
            mask_ratio=official["mask_ratio"],
            norm_pix_loss=official.get("norm_pix_loss", False),
        )
        self.model = AutoModelForPreTraining.from_pretrained(
            folder / "converted", attn_implementation=attn_implementation
        )
        assert self.model.config.image_size == official["img_size"]
        assert self.model.config.patch_size == official["patch_size"]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """All tensors under `prefix`, without it."""
        return {key[len(prefix) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{prefix}.")}

    def sequence(self, name: str) -> list[torch.Tensor]:
        """The tensors `name`.0, `name`.1, ..."""
        group = self.group(name)
        return [group[str(i)] for i in range(len(group))]


@pytest.fixture(params=["eager", "sdpa"])
def attn_implementation(request) -> str:
    return request.param


@pytest.fixture(params=["crate_mae_micro", "crate_mae_micro_norm_pix"])
def reference(request, tmp_path, attn_implementation) -> Reference:
    return Reference(request.param, tmp_path, attn_implementation)


def test_position_table_is_the_official_one(reference):
    table = CrateMaeForPreTraining(reference.model.config).crate_mae.embeddings.position_embeddings
    torch.testing.assert_close(table, reference.tensors["checkpoint.decoder_pos_embed"], **TOLERANCE)


def test_masked_forward(reference):
    expected = reference.group("expected")
    outputs = reference.model(reference.tensors["pixel_values"], noise=reference.tensors["noise"])
    torch.testing.assert_close(outputs.loss.reshape(1), expected["loss"], **TOLERANCE)
    torch.testing.assert_close(outputs.logits, expected["logits"], **TOLERANCE)
    assert torch.equal(outputs.mask, expected["mask"])
    assert torch.equal(outputs.ids_restore, expected["ids_restore"])
    latent = reference.model.crate_mae(reference.tensors["pixel_values"], expected["mask"].bool()).last_hidden_state
    torch.testing.assert_close(latent, expected["latent"], **TOLERANCE)


def test_gradients(reference):
    reference.model(reference.tensors["pixel_values"], noise=reference.tensors["noise"]).loss.backward()
    gradients = {name: parameter.grad for name, parameter in reference.model.named_parameters()}
    expected = {convert_key(key, CRATE_MAE.keys): value for key, value in reference.group("expected.grad").items()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def test_unmasked_encoder(reference):
    encoder = reference.model.crate_mae
    codes = []
    for module in encoder.modules():
        if isinstance(module, CrateMSSA):
            module.subspace_proj.register_forward_hook(lambda module, args, output: codes.append(output))
    eager = encoder.config._attn_implementation == "eager"
    outputs = encoder(reference.tensors["pixel_values"], output_hidden_states=True, output_attentions=eager)
    torch.testing.assert_close(
        outputs.last_hidden_state, reference.tensors["expected.unmasked_last_hidden_state"], **TOLERANCE
    )
    torch.testing.assert_close(
        list(outputs.hidden_states), reference.sequence("expected.unmasked_hidden_states"), **TOLERANCE
    )
    torch.testing.assert_close(codes, reference.sequence("expected.unmasked_subspace_codes"), **TOLERANCE)
    if eager:
        torch.testing.assert_close(
            list(outputs.attentions), reference.sequence("expected.unmasked_attentions"), **TOLERANCE
        )


def test_training_curve(tmp_path, attn_implementation):
    reference = Reference("crate_mae_training_curve", tmp_path, attn_implementation)
    reference.model.train()
    optimizer = torch.optim.AdamW(reference.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    losses = []
    for pixel_values, noise in zip(reference.tensors["pixel_values"], reference.tensors["noise"], strict=True):
        loss = reference.model(pixel_values, noise=noise).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.double())
    torch.testing.assert_close(torch.stack(losses).detach(), reference.tensors["expected.losses"], atol=1e-4, rtol=1e-4)


# The official totals include `decoder_embed` (d² + d), which is never called, and two frozen tables (2 · 197 · d).
@pytest.mark.parametrize(
    ("size", "official_total"),
    [("tiny", 11_555_328), ("small", 25_405_824), ("base", 44_638_464), ("large", 154_274_560)],
)
def test_parameter_counts(size, official_total):
    with torch.device("meta"):
        model = CrateMaeForPreTraining(CrateMaeConfig.from_size(size))
    width = model.config.hidden_size
    assert model.num_parameters(only_trainable=True) == official_total - (width**2 + width) - 2 * 197 * width


def test_reverse_gives_the_official_checkpoint_back(reference, tmp_path):
    revert_checkpoint(tmp_path / "converted", tmp_path / "back.pth")
    back, official = torch.load(tmp_path / "back.pth", weights_only=True)["model"], reference.group("checkpoint")
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in official.items()}
    for key in back.keys() - {"decoder_embed.weight", "decoder_embed.bias"}:
        assert torch.equal(back[key], official[key]), key


# --- supervised CRATE


def read_reference(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Metadata and tensors of a golden file."""
    metadata, tensors = read_golden(name)
    return {name: json.loads(value) for name, value in metadata.items()}, tensors


def test_crate_logits_loss_and_every_gradient(tmp_path, attn_implementation):
    metadata, tensors = read_reference("crate_micro")
    official = {key.removeprefix("checkpoint."): v for key, v in tensors.items() if key.startswith("checkpoint.")}
    torch.save({"state_dict": {f"module.{key}": value for key, value in official.items()}}, tmp_path / "official.pth")
    heads = metadata["config"]["heads"]
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "converted", num_attention_heads=heads)
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path / "converted", attn_implementation=attn_implementation
    )
    assert type(model) is CrateForImageClassification
    assert (model.config.image_size, model.config.patch_size, model.config.num_labels) == (32, 8, 10)
    outputs = model(tensors["pixel_values"], labels=torch.tensor(metadata["labels"]))
    torch.testing.assert_close(outputs.logits, tensors["expected.logits"], **TOLERANCE)
    torch.testing.assert_close(outputs.loss.reshape(1), tensors["expected.loss"], **TOLERANCE)
    outputs.loss.backward()
    gradients = {convert_key(name, CRATE.official_keys): p.grad for name, p in model.named_parameters()}
    prefix = "expected.grad."
    expected = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    assert gradients.keys() == expected.keys() == official.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    revert_checkpoint(tmp_path / "converted", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], value) for key, value in official.items())


@pytest.mark.parametrize(
    ("size", "total"), [("tiny", 6_090_856), ("small", 13_116_328), ("base", 22_796_008), ("large", 77_641_192)]
)
def test_crate_parameter_counts(size, total):
    with torch.device("meta"):
        model = CrateForImageClassification(CrateConfig.from_size(size, num_labels=1000))
    assert model.num_parameters() == total


# --- CRATE-alpha


class AlphaReference:
    """The golden file, and the model with its weights, converted as a user converts them."""

    def __init__(self, folder: Path, attn_implementation: str):
        metadata, self.tensors = read_reference("crate_alpha_micro")
        self.official = self.group("checkpoint")
        self.folder = folder
        self.attn_implementation = attn_implementation
        torch.save(self.official, folder / "official.pth")
        sizes = metadata["config"]
        convert_checkpoint(
            folder / "official.pth",
            folder / "converted",
            num_attention_heads=sizes["heads"],
            final_layer_norm_eps=sizes["head_norm_eps"],
        )
        self.model = self.load()
        config = self.model.config
        assert type(self.model) is CrateAlphaForImageClassification
        assert (config.image_size, config.patch_size, config.num_labels) == (16, 4, sizes["num_classes"])
        assert (config.ista_step_size, config.ista_lambda) == (sizes["eta"], sizes["lmbda"])
        assert (config.overcomplete_ratio, config.layer_norm_eps) == (sizes["overcomplete_ratio"], sizes["norm_eps"])

    def load(self, **changes) -> CrateAlphaForImageClassification:
        return AutoModelForImageClassification.from_pretrained(
            self.folder / "converted", attn_implementation=self.attn_implementation, **changes
        )

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) + 1 :]: v for key, v in self.tensors.items() if key.startswith(f"{prefix}.")}


@pytest.fixture
def alpha(tmp_path, attn_implementation) -> AlphaReference:
    return AlphaReference(tmp_path, attn_implementation)


def test_alpha_logits_loss_and_every_gradient(alpha):
    pixel_values = alpha.tensors["pixel_values"].requires_grad_()
    outputs = alpha.model(pixel_values, labels=alpha.tensors["labels"])
    torch.testing.assert_close(outputs.logits, alpha.tensors["expected.logits"], **TOLERANCE)
    torch.testing.assert_close(outputs.loss.reshape(1), alpha.tensors["expected.loss"], **TOLERANCE)
    outputs.loss.backward()
    gradients = {convert_key(name, CRATE_ALPHA.official_keys): p.grad for name, p in alpha.model.named_parameters()}
    gradients["pixel_values"] = pixel_values.grad
    expected = alpha.group("expected.grad")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def test_alpha_inside(alpha):
    found = {}
    for index, layer in enumerate(alpha.model.crate_alpha.layers):

        def hook(norm, arguments, normed, index=index, ista=layer.ista):
            codes = ista.codes(normed)
            found.update({f"{index}.half": arguments[0], f"{index}.code1": codes[0], f"{index}.code2": codes[1]})

        layer.layernorm_after.register_forward_hook(hook)
    alpha.model.classifier[0].register_forward_hook(lambda norm, arguments, normed: found.update(pooled=normed))
    eager = alpha.attn_implementation == "eager"
    outputs = alpha.model(alpha.tensors["pixel_values"], output_hidden_states=True, output_attentions=eager)
    found["embeddings"], *states = outputs.hidden_states
    found |= {f"{index}.output": state for index, state in enumerate(states)}
    if eager:
        found |= {f"{index}.attention_probs": probs for index, probs in enumerate(outputs.attentions)}
    expected = alpha.group("expected.layers") | {
        name: alpha.tensors[f"expected.{name}"] for name in ("embeddings", "pooled")
    }
    assert found.keys() == {name for name in expected if eager or "attention_probs" not in name}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("rung", "changes"),
    [
        ("no_residual", {"ista_residual": False}),
        ("coupled", {"decoupled_dictionary": False}),
        ("no_residual_coupled", {"ista_residual": False, "decoupled_dictionary": False}),
    ],
)
def test_the_steps_from_crate_to_alpha(rung, changes, alpha):
    model = CrateAlphaForImageClassification(CrateAlphaConfig(**{**alpha.model.config.to_dict(), **changes})).eval()
    model.load_state_dict({k: v for k, v in alpha.model.state_dict().items() if k in model.state_dict()})
    outputs = model(alpha.tensors["pixel_values"], labels=alpha.tensors["labels"])
    outputs.loss.backward()
    expected = alpha.group(f"expected.{rung}")
    torch.testing.assert_close(outputs.logits, expected["logits"], **TOLERANCE)
    torch.testing.assert_close(outputs.loss.reshape(1), expected["loss"], **TOLERANCE)
    gradient = model.crate_alpha.layers[0].ista.dictionary.grad
    torch.testing.assert_close(gradient, expected["grad.transformer.layers.0.1.fn.D"], **TOLERANCE)


def test_alpha_with_the_epsilon_of_jax(alpha):
    assert CrateAlphaConfig().final_layer_norm_eps == 1e-6
    logits = alpha.load(final_layer_norm_eps=1e-6)(alpha.tensors["pixel_values"]).logits
    torch.testing.assert_close(logits, alpha.tensors["expected.jax.logits"], **TOLERANCE)
    assert (logits - alpha.tensors["expected.logits"]).abs().max() > 1e-3


def test_reverse_of_an_alpha_gives_the_bare_official_checkpoint_back(alpha, tmp_path):
    revert_checkpoint(tmp_path / "converted", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == alpha.official.keys()
    assert all(torch.equal(back[key], value) for key, value in alpha.official.items())


ALPHA_TOTALS = {
    "tiny": {32: 5_226_088, 16: 4_811_944, 14: 4_788_904, 8: 4_814_248},
    "small": {32: 42_218_344, 16: 40_975_912, 14: 40_906_792, 8: 40_982_824},
    "base": {32: 73_985_512, 16: 72_328_936, 14: 72_236_776, 8: 72_338_152},
    "large": {32: 255_982_568, 16: 253_773_800, 14: 253_650_920, 8: 253_786_088},
    "huge": {32: 529_734_120, 16: 526_973_160, 14: 526_819_560, 8: 526_988_520},
}


def count_alpha(size: str, patch_size: int, num_labels: int = 1000, **changes) -> int:
    config = CrateAlphaConfig.from_size(size, patch_size=patch_size, num_labels=num_labels, **changes)
    with torch.device("meta"):
        return CrateAlphaForImageClassification(config).num_parameters()


@pytest.mark.parametrize("size", ALPHA_TOTALS)
def test_alpha_parameter_counts(size):
    totals = ALPHA_TOTALS[size]
    assert {patch_size: count_alpha(size, patch_size) for patch_size in totals} == totals


@pytest.mark.parametrize(
    ("size", "patch_size", "total"),
    [("base", 16, 86_299_359), ("base", 8, 86_308_575), ("large", 14, 272_272_095), ("large", 32, 274_603_743)],
)
def test_alpha_parameter_counts_with_the_classes_of_imagenet_21k(size, patch_size, total):
    assert count_alpha(size, patch_size, num_labels=19_167) == total


def test_alpha_parameter_count_with_one_dictionary():
    assert count_alpha("base", 16, decoupled_dictionary=False) == 44_017_384
