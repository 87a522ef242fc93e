"""The model against golden values of the official implementation (tests/reference)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from crate_mae_hf import CrateConfig, CrateForImageClassification, CrateMaeConfig, CrateMaeForPreTraining
from crate_mae_hf.conversion import CRATE, CRATE_MAE, convert_checkpoint, convert_key, revert_checkpoint
from crate_mae_hf.crate_layers import CrateMSSA

REFERENCE = Path(__file__).parent / "reference"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Reference:
    """A golden file, and the model with its weights, converted as a user converts them."""

    def __init__(self, name: str, folder: Path, attn_implementation: str):
        with safe_open(REFERENCE / f"{name}.safetensors", framework="pt") as file:
            official = json.loads(file.metadata()["config"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
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


def read_crate() -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(REFERENCE / "crate_micro.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return {name: json.loads(value) for name, value in file.metadata().items()}, tensors


def test_crate_logits_loss_and_every_gradient(tmp_path, attn_implementation):
    metadata, tensors = read_crate()
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
