"""Checkpoints of the official CRATE-MAE code (github.com/Ma-Lab-Berkeley/CRATE) in the layout of this package."""

import re
from collections.abc import Mapping

import torch

# Official key -> ours; `{i}` is the number of a layer.
KEYS = {
    "cls_token": "crate_mae.embeddings.cls_token",
    "mask_token": "crate_mae.embeddings.mask_token",
    "decoder_pos_embed": "crate_mae.embeddings.position_embeddings",
    "patch_embed.proj.weight": "crate_mae.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "crate_mae.embeddings.patch_embeddings.projection.bias",
    "blocks.{i}.layers.0.0.norm.weight": "crate_mae.layers.{i}.layernorm_before.weight",
    "blocks.{i}.layers.0.0.norm.bias": "crate_mae.layers.{i}.layernorm_before.bias",
    "blocks.{i}.layers.0.0.fn.qkv.weight": "crate_mae.layers.{i}.mssa.subspace_proj.weight",
    "blocks.{i}.layers.0.0.fn.to_out.0.weight": "crate_mae.layers.{i}.mssa.out_proj.weight",
    "blocks.{i}.layers.0.0.fn.to_out.0.bias": "crate_mae.layers.{i}.mssa.out_proj.bias",
    "blocks.{i}.layers.0.1.norm.weight": "crate_mae.layers.{i}.layernorm_after.weight",
    "blocks.{i}.layers.0.1.norm.bias": "crate_mae.layers.{i}.layernorm_after.bias",
    "blocks.{i}.layers.0.1.fn.weight": "crate_mae.layers.{i}.ista.dictionary",
    "norm.weight": "crate_mae.layernorm.weight",
    "norm.bias": "crate_mae.layernorm.bias",
    "decoder_blocks.{i}.layers.0.0.norm.weight": "decoder.layers.{i}.layernorm_before.weight",
    "decoder_blocks.{i}.layers.0.0.norm.bias": "decoder.layers.{i}.layernorm_before.bias",
    "decoder_blocks.{i}.layers.0.0.fn.weight": "decoder.layers.{i}.dictionary",
    "decoder_blocks.{i}.layers.0.1.norm.weight": "decoder.layers.{i}.layernorm_after.weight",
    "decoder_blocks.{i}.layers.0.1.norm.bias": "decoder.layers.{i}.layernorm_after.bias",
    "decoder_blocks.{i}.layers.0.1.fn.qkv.weight": "decoder.layers.{i}.mssa.subspace_proj.weight",
    "decoder_blocks.{i}.layers.0.1.fn.to_out.0.weight": "decoder.layers.{i}.mssa.out_proj.weight",
    "decoder_blocks.{i}.layers.0.1.fn.to_out.0.bias": "decoder.layers.{i}.mssa.out_proj.bias",
    "decoder_norm.weight": "decoder.layernorm.weight",
    "decoder_norm.bias": "decoder.layernorm.bias",
    "decoder_pred.weight": "decoder.prediction_head.weight",
    "decoder_pred.bias": "decoder.prediction_head.bias",
}
# Official keys that its forward never reads, and why.
UNUSED = {
    "pos_embed": "never read: the encoder adds `decoder_pos_embed`",
    "decoder_embed.weight": "never called: encoder and decoder have one width",
    "decoder_embed.bias": "never called: encoder and decoder have one width",
}


def convert_key(key: str) -> str:
    """Return our name of an official key.

    Raises:
        ValueError: If the key is no CRATE-MAE key, or one that the official code never uses.
    """
    layer = re.search(r"blocks\.(\d+)\.", key)
    pattern = key.replace(layer[0], "blocks.{i}.") if layer else key
    if pattern not in KEYS:
        raise ValueError(f"`{key}` is not a weight of CRATE-MAE that the official code uses.")
    return KEYS[pattern].format(i=layer[1] if layer else "")


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename an official state dict to ours, without the weights that the official code never uses (`UNUSED`).

    Raises:
        ValueError: If a key is not one of the official CRATE-MAE.
    """
    return {convert_key(key): value for key, value in state_dict.items() if key not in UNUSED}
