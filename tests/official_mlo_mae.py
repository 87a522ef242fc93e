"""The golden values of MLO-MAE, and its three-level problem that is small enough to write down."""

import json

import torch
from golden import read_golden
from official_vic_mae import rename, to_vit_mae
from torch.nn.functional import cross_entropy

from crate_mae_hf.objectives.mlo_mae import MloMae

# Names of the official masking network and head -> ours.
MASKING_NAMES = {"first_hidden_layer.fc": "hidden", "output_layer": "output"}
HEAD_NAMES = {"fc_norm": "0", "head": "2"}

Tensors = dict[str, torch.Tensor]


def read_reference(name: str) -> tuple[dict, Tensors]:
    """The metadata, as far as it is JSON, and all tensors in float64; integers and masks stay as they are."""
    texts, tensors = read_golden(name)
    metadata = {key: json.loads(value) for key, value in texts.items() if value[0] in "{["}
    return metadata, {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}


def pick(tensors: Tensors, prefix: str, names: dict[str, str] | None = None) -> Tensors:
    """What lies under a prefix, by our names."""
    found = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            for theirs, ours in (names or {}).items():
                name = name.replace(theirs, ours) if name.startswith(theirs) else name
            found[name] = value
    return found


def official_vit(**settings) -> tuple[MloMae, dict, Tensors]:
    """The official system in float64 on a ViTMAE, whose positions it trains, and what is known of it."""
    metadata, tensors = read_reference("mlo_mae_vit_micro")
    config = metadata["config"]
    autoencoder = to_vit_mae(config, tensors, "checkpoint.pretrain.")
    objective = MloMae(
        autoencoder,
        config["num_classes"],
        mask_hidden_size=config["mask_hidden_size"],
        head_dropout=config["head_dropout"],
        **settings,
    )
    objective.masking.load_state_dict(pick(tensors, "checkpoint.mask.", MASKING_NAMES))
    objective.head.load_state_dict(pick(tensors, "checkpoint.finetune.", HEAD_NAMES))
    return objective.double().requires_grad_(True), metadata, tensors


def expected_weights(tensors: Tensors, group: str) -> Tensors:
    """Values of all weights of a `MloMae`, by its names; those that a group does not have are left out."""
    return {
        **{f"autoencoder.{name}": value for name, value in rename(tensors, f"{group}.pretrain.").items()},
        **{f"masking.{name}": value for name, value in pick(tensors, f"{group}.mask.", MASKING_NAMES).items()},
        **{f"head.{name}": value for name, value in pick(tensors, f"{group}.finetune.", HEAD_NAMES).items()},
    }


class Toy:
    """Three levels: E and its decoder reconstruct what T masks, C classifies what E gives, on tokens (B, N, F)."""

    def __init__(self) -> None:
        metadata, self.tensors = read_reference("mlo_mae_micro")
        self.settings = metadata["toy"]
        self.weights = {
            module: {key: value.clone().requires_grad_() for key, value in pick(self.tensors, f"toy.{module}.").items()}
            for module in ("pre", "fin", "mask")
        }

    def parameters(self, module: str) -> list[torch.Tensor]:
        return list(self.weights[module].values())

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        pre = self.weights["pre"]
        return torch.tanh(x @ pre["enc_w"].T + pre["enc_b"])

    def pretrain(self, batch: str) -> dict[str, torch.Tensor]:
        x, mask, pre = self.tensors[f"toy.batch.{batch}.x"], self.weights["mask"], self.weights["pre"]
        hidden = torch.relu(x.flatten(1) @ mask["w1"].T + mask["b1"])
        scores = torch.sigmoid(hidden @ mask["w2"].T + mask["b2"])
        masked = (scores.argsort(dim=1).argsort(dim=1) >= self.settings["keep"]).double()
        kept = 1 - masked
        mean = (self.encode(x) * kept.unsqueeze(2)).sum(dim=1) / kept.sum(dim=1, keepdim=True)
        predicted = (mean.unsqueeze(1) + pre["pos"]) @ pre["dec_w"].T + pre["dec_b"]
        patch_loss = (predicted - x).pow(2).mean(dim=2)
        loss = (scores * masked * patch_loss).sum() / masked.sum()
        return {"scores": scores, "mask": masked, "patch_loss": patch_loss, "loss_pre": loss}

    def classify(self, batch: str) -> torch.Tensor:
        features, fin = self.encode(self.tensors[f"toy.batch.{batch}.x"]).mean(dim=1), self.weights["fin"]
        return cross_entropy(features @ fin["w"].T + fin["b"], self.tensors[f"toy.batch.{batch}.y"].long())

    def update(self, module: str, gradients: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, gradient in zip(self.parameters(module), gradients, strict=True):
                weight -= self.settings["lr"][module] * gradient
