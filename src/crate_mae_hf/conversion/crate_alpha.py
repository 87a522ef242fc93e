"""Checkpoints of CRATE-alpha as its authors store them: from PyTorch, from JAX, and as the vision tower of a CLIPA."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..configuration_crate_alpha import CrateAlphaConfig
from .configurations import check_size, count_layers, infer_heads, simplify

_MSSA = "MultiHeadDotProductSubspaceAttention_0"
_ISTA = "OvercompleteISTABlock_0"
# Ours -> in PyTorch, in JAX (below `params/`), in a CLIPA; `{i}` is the number of a layer.
NAMES = {
    "crate_alpha.embeddings.cls_token": ("cls_token", "cls", "visual.class_embedding"),
    "crate_alpha.embeddings.position_embeddings": ("pos_embedding", "pos_embedding", "visual.positional_embedding"),
    "crate_alpha.embeddings.patch_embeddings.projection.weight": (
        "conv1.weight",
        "embedding/kernel",
        "visual.conv1.weight",
    ),
    "crate_alpha.embeddings.patch_embeddings.projection.bias": ("conv1.bias", "embedding/bias", "visual.conv1.bias"),
    **{
        f"crate_alpha.layers.{{i}}.{ours}": (
            f"transformer.layers.{{i}}.{pytorch}",
            f"Transformer/encoderblock_{{i}}/{jax}",
            f"visual.transformer.resblocks.{{i}}.{clipa}",
        )
        for ours, pytorch, jax, clipa in (
            ("layernorm_before.weight", "0.norm.weight", "LayerNorm_0/scale", "ln_1.weight"),
            ("layernorm_before.bias", "0.norm.bias", "LayerNorm_0/bias", "ln_1.bias"),
            ("mssa.subspace_proj.weight", "0.fn.qkv.weight", f"{_MSSA}/proj/kernel", "attn.in_proj_weight"),
            ("mssa.o_proj.weight", "0.fn.to_out.0.weight", f"{_MSSA}/out/kernel", "attn.out_proj.weight"),
            ("layernorm_after.weight", "1.norm.weight", "LayerNorm_1/scale", "ln_2.weight"),
            ("layernorm_after.bias", "1.norm.bias", "LayerNorm_1/bias", "ln_2.bias"),
            ("ista.dictionary", "1.fn.D", f"{_ISTA}/D", "mlp.c_fc"),
            ("ista.output_dictionary", "1.fn.D1", f"{_ISTA}/D1", "mlp.c_proj"),
        )
    },
    "classifier.0.weight": ("mlp_head.0.weight", "encoder_norm/scale", "visual.ln_post.weight"),
    "classifier.0.bias": ("mlp_head.0.bias", "encoder_norm/bias", "visual.ln_post.bias"),
    "classifier.1.weight": ("mlp_head.1.weight", "head/kernel", "visual.proj"),
    "classifier.1.bias": ("mlp_head.1.bias", "head/bias", "visual.proj_bias"),
}
# Official -> ours.
PYTORCH_KEYS, JAX_KEYS, CLIPA_KEYS = ({names[i]: ours for ours, names in NAMES.items()} for i in range(3))
JAX_SUBSPACES = f"Transformer/encoderblock_0/{_MSSA}/proj/kernel"


def read_crate_alpha_config(
    state_dict: Mapping[str, torch.Tensor],
    keys: Mapping[str, str] = PYTORCH_KEYS,
    size: str | None = None,
    num_attention_heads: int | None = None,
    **settings: Any,
) -> CrateAlphaConfig:
    """Return the configuration of an official checkpoint of CRATE-alpha, for square images.

    Args:
        state_dict: Official state dict that has the layout's `dimensions`, its tensors of the shapes of ours.
        keys: Official keys -> ours.
        size: Published size, `"tiny"`, `"small"`, `"base"`, `"large"` or `"huge"`; gives the number of heads.
        num_attention_heads: Number of heads. One head has no output projection and needs no telling.
        **settings: Other arguments of [`CrateAlphaConfig`] that a checkpoint does not hold, such as `ista_lambda`.

    Raises:
        ValueError: If the tensors contradict `size`, the number of heads is not told, or the images are no squares.
    """
    official = {ours: key.format(i=0) for key, ours in keys.items()}
    hidden_size, num_channels, *patch_size = state_dict[
        official["crate_alpha.embeddings.patch_embeddings.projection.weight"]
    ].shape
    positions = official["crate_alpha.embeddings.position_embeddings"]
    num_patches = state_dict[positions].shape[1] - 1
    grid_side = math.isqrt(num_patches)
    if grid_side**2 != num_patches:
        raise ValueError(f"`{positions}` must be that of a square grid of patches, got {num_patches} patches.")
    num_atoms = state_dict[official["crate_alpha.layers.{i}.ista.dictionary"]].shape[1]
    layer_prefix = next(key.split("{i}")[0] for key in keys if "{i}" in key)
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(state_dict, layer_prefix),
    }
    default = check_size(size, CrateAlphaConfig, sizes)
    has_projection = official["crate_alpha.layers.{i}.mssa.o_proj.weight"] in state_dict
    sizes["num_attention_heads"] = infer_heads(
        "num_attention_heads", num_attention_heads, default, has_projection, CrateAlphaConfig
    )
    sizes["num_labels"] = len(state_dict[official["classifier.1.weight"]])
    return CrateAlphaConfig(
        num_channels=num_channels,
        patch_size=simplify(patch_size),
        image_size=simplify([grid_side * side for side in patch_size]),
        overcomplete_ratio=max(num_atoms // hidden_size, 1),
        **sizes,
        **settings,
    )


def prepare_jax(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring the kernels of JAX, whose outputs come last and whose heads are an axis, into the shapes of ours."""
    prepared = dict(state_dict)
    for key, value in state_dict.items():
        if key.endswith("/proj/kernel"):  # (d, K, d / K)
            value = value.reshape(len(value), -1).T
        elif key.endswith("/out/kernel"):  # (K, d / K, d)
            value = value.reshape(-1, value.shape[-1]).T
        elif key == "embedding/kernel":
            value = value.permute(3, 2, 0, 1)
        elif key == "head/kernel":
            value = value.T
        prepared[key] = value.contiguous()
    return prepared


def read_jax_config(
    state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None = None, **settings: Any
) -> CrateAlphaConfig:
    """Return the configuration of a checkpoint from JAX, whose tensors tell the number of heads as well.

    Raises:
        ValueError: As for `read_crate_alpha_config`, or if another number of heads is told.
    """
    num_heads = state_dict[JAX_SUBSPACES].shape[1]
    if num_attention_heads not in (None, num_heads):
        raise ValueError(f"`num_attention_heads` must be the checkpoint's, {num_heads}, got {num_attention_heads}.")
    return read_crate_alpha_config(prepare_jax(state_dict), JAX_KEYS, num_attention_heads=num_heads, **settings)


def prepare_clipa(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring the vision tower of a CLIPA into the shapes of ours; its text tower stays as it is.

    U is stored three times, as query, key and value of an ordinary attention, of which one is kept. Two biases that the
    tower has not are zero.

    Raises:
        ValueError: If query, key and value are not the same.
    """
    patches, projection = state_dict["visual.conv1.weight"], state_dict["visual.proj"].T.contiguous()
    prepared = {
        "visual.conv1.bias": patches.new_zeros(len(patches)),
        "visual.proj_bias": projection.new_zeros(len(projection)),
        **state_dict,
        "visual.class_embedding": state_dict["visual.class_embedding"].unflatten(0, (1, 1, -1)),
        "visual.positional_embedding": state_dict["visual.positional_embedding"].unsqueeze(0),
        "visual.proj": projection,
    }
    for key, value in state_dict.items():
        if key.startswith("visual.") and key.endswith(".attn.in_proj_weight"):
            subspaces = value[: len(value) // 3]
            if not torch.equal(value, subspaces.repeat(3, 1)):
                raise ValueError(f"`{key}` must hold U of CRATE-alpha three times; its thirds are not equal.")
            prepared[key] = subspaces.clone()
    return prepared


def read_clipa_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> CrateAlphaConfig:
    """Return the configuration of the vision tower of a CLIPA; the classes are the dimensions of its embedding.

    Raises:
        ValueError: As for `prepare_clipa` and `read_crate_alpha_config`.
    """
    return read_crate_alpha_config(prepare_clipa(state_dict), CLIPA_KEYS, **settings)
