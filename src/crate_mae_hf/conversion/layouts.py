"""How the official code (github.com/Ma-Lab-Berkeley/CRATE, UCSC-VLAA/CRATE-alpha) stores its models.

One `Layout` per kind of checkpoint.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel

from ..configuration_crate import CrateEncoderConfig
from ..modeling_crate import CrateForImageClassification
from ..modeling_crate_alpha import CrateAlphaForImageClassification
from ..modeling_crate_mae import CrateMaeForPreTraining
from . import crate_alpha
from .configurations import read_crate_config, read_crate_mae_config

StateDict = dict[str, torch.Tensor]


class Layout(NamedTuple):
    """How the official code stores a model."""

    name: str
    model_class: type[PreTrainedModel]
    keys: Mapping[str, str]  # official -> ours; `{i}` is the number of a layer
    unused: Mapping[str, str]  # official keys that are left out, as regular expressions, and why
    refused: tuple[str, ...]  # settings of other models, which its checkpoints do not go with
    mark: str  # regular expression for keys that tell it from the layouts after it in `LAYOUTS`
    dimensions: Mapping[str, int]  # official keys that tell the sizes -> number of dimensions of their tensors
    read_config: Callable[..., CrateEncoderConfig]  # of a state dict and settings
    saved_model: str  # what a folder has to hold to be written as an official checkpoint
    complete: Callable[[StateDict], StateDict] = dict  # adds what official checkpoints hold beside the keys
    prepare: Callable[[StateDict], StateDict] = dict  # brings official tensors into the shapes of ours
    added: Mapping[str, str] = {}  # keys that `prepare` adds, and why
    fixed: Mapping[str, Any] = {}  # settings that the official code has no other value of
    is_bare: bool = False  # whether the official code wants a state dict that is not under `model`

    @property
    def config_class(self) -> type[CrateEncoderConfig]:
        """Class of the configuration of `model_class`."""
        return cast(type[CrateEncoderConfig], self.model_class.config_class)

    @property
    def official_keys(self) -> dict[str, str]:
        """Our keys -> official ones."""
        return {ours: official for official, ours in self.keys.items()}

    def why_unused(self, key: str) -> str | None:
        """Say why an official key is left out; `None` for one that is not."""
        return next((why for pattern, why in self.unused.items() if re.fullmatch(pattern, key)), None)


def add_unused(state_dict: StateDict) -> StateDict:
    """Add the weights that the official CRATE-MAE never uses, such that they would do nothing if they were used."""
    # Loading leaves a buffer in float32; the values are the checkpoint's.
    table = state_dict["decoder_pos_embed"].to(state_dict["cls_token"].dtype)
    width = table.shape[2]
    return state_dict | {
        "decoder_pos_embed": table,
        "pos_embed": table.clone(),
        "decoder_embed.weight": torch.eye(width, dtype=table.dtype),
        "decoder_embed.bias": torch.zeros(width, dtype=table.dtype),
    }


# The rest of a key in an encoder layer.
LAYER_KEYS = {
    "0.norm.weight": "layernorm_before.weight",
    "0.norm.bias": "layernorm_before.bias",
    "0.fn.qkv.weight": "mssa.subspace_proj.weight",
    "0.fn.to_out.0.weight": "mssa.o_proj.weight",
    "0.fn.to_out.0.bias": "mssa.o_proj.bias",
    "1.norm.weight": "layernorm_after.weight",
    "1.norm.bias": "layernorm_after.bias",
    "1.fn.weight": "ista.dictionary",
}
CRATE_MAE = Layout(
    name="CRATE-MAE",
    model_class=CrateMaeForPreTraining,
    keys={
        "cls_token": "crate_mae.embeddings.cls_token",
        "mask_token": "crate_mae.embeddings.mask_token",
        "decoder_pos_embed": "crate_mae.embeddings.position_embeddings",
        "patch_embed.proj.weight": "crate_mae.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "crate_mae.embeddings.patch_embeddings.projection.bias",
        **{f"blocks.{{i}}.layers.0.{key}": f"crate_mae.layers.{{i}}.{ours}" for key, ours in LAYER_KEYS.items()},
        "norm.weight": "crate_mae.layernorm.weight",
        "norm.bias": "crate_mae.layernorm.bias",
        "decoder_blocks.{i}.layers.0.0.norm.weight": "decoder.layers.{i}.layernorm_before.weight",
        "decoder_blocks.{i}.layers.0.0.norm.bias": "decoder.layers.{i}.layernorm_before.bias",
        "decoder_blocks.{i}.layers.0.0.fn.weight": "decoder.layers.{i}.dictionary",
        "decoder_blocks.{i}.layers.0.1.norm.weight": "decoder.layers.{i}.layernorm_after.weight",
        "decoder_blocks.{i}.layers.0.1.norm.bias": "decoder.layers.{i}.layernorm_after.bias",
        "decoder_blocks.{i}.layers.0.1.fn.qkv.weight": "decoder.layers.{i}.mssa.subspace_proj.weight",
        "decoder_blocks.{i}.layers.0.1.fn.to_out.0.weight": "decoder.layers.{i}.mssa.o_proj.weight",
        "decoder_blocks.{i}.layers.0.1.fn.to_out.0.bias": "decoder.layers.{i}.mssa.o_proj.bias",
        "decoder_norm.weight": "decoder.layernorm.weight",
        "decoder_norm.bias": "decoder.layernorm.bias",
        "decoder_pred.weight": "decoder.prediction_head.weight",
        "decoder_pred.bias": "decoder.prediction_head.bias",
    },
    unused={
        "pos_embed": "never read: the encoder adds `decoder_pos_embed`",
        "decoder_embed.weight": "never called: encoder and decoder have one width",
        "decoder_embed.bias": "never called: encoder and decoder have one width",
    },
    refused=("image_size", "num_channels"),
    mark="",
    dimensions={"patch_embed.proj.weight": 4, "decoder_pos_embed": 3},
    read_config=read_crate_mae_config,
    saved_model="a pre-training model with its decoder",
    complete=add_unused,
)
CRATE = Layout(
    name="supervised CRATE",
    model_class=CrateForImageClassification,
    keys={
        "cls_token": "crate.embeddings.cls_token",
        "pos_embedding": "crate.embeddings.position_embeddings",
        "to_patch_embedding.1.weight": "crate.embeddings.patch_embeddings.layernorm_before.weight",
        "to_patch_embedding.1.bias": "crate.embeddings.patch_embeddings.layernorm_before.bias",
        "to_patch_embedding.2.weight": "crate.embeddings.patch_embeddings.projection.weight",
        "to_patch_embedding.2.bias": "crate.embeddings.patch_embeddings.projection.bias",
        "to_patch_embedding.3.weight": "crate.embeddings.patch_embeddings.layernorm_after.weight",
        "to_patch_embedding.3.bias": "crate.embeddings.patch_embeddings.layernorm_after.bias",
        **{f"transformer.layers.{{i}}.{key}": f"crate.layers.{{i}}.{ours}" for key, ours in LAYER_KEYS.items()},
        "mlp_head.0.weight": "classifier.0.weight",
        "mlp_head.0.bias": "classifier.0.bias",
        "mlp_head.1.weight": "classifier.1.weight",
        "mlp_head.1.bias": "classifier.1.bias",
    },
    unused={},
    refused=("decoder_num_attention_heads", "mask_ratio", "norm_pix_loss"),
    mark=r"^(to_patch_embedding|transformer|mlp_head)\.",
    dimensions={"to_patch_embedding.2.weight": 2, "pos_embedding": 3, "mlp_head.1.weight": 2},
    read_config=read_crate_config,
    saved_model="a classifier",
)
CRATE_ALPHA = Layout(
    name="CRATE-alpha",
    model_class=CrateAlphaForImageClassification,
    keys=crate_alpha.PYTORCH_KEYS,
    unused={},
    refused=("decoder_num_attention_heads", "mask_ratio", "norm_pix_loss", "num_channels"),
    mark=r"^transformer\.layers\.\d+\.1\.fn\.D1?$",
    dimensions={
        "conv1.weight": 4,
        "pos_embedding": 3,
        "mlp_head.1.weight": 2,
        "transformer.layers.0.1.fn.D": 2,
    },
    read_config=crate_alpha.read_crate_alpha_config,
    saved_model="a classifier",
    fixed={"decoupled_dictionary": True, "ista_residual": True},
    is_bare=True,
)
CRATE_ALPHA_JAX = CRATE_ALPHA._replace(
    name="CRATE-alpha from JAX",
    keys=crate_alpha.JAX_KEYS,
    mark=r"^Transformer/encoderblock_\d+/OvercompleteISTABlock_0/",
    dimensions={
        "embedding/kernel": 4,
        "pos_embedding": 3,
        "head/kernel": 2,
        crate_alpha.JAX_SUBSPACES: 3,
        "Transformer/encoderblock_0/OvercompleteISTABlock_0/D": 2,
    },
    read_config=crate_alpha.read_jax_config,
    prepare=crate_alpha.prepare_jax,
)
CRATE_ALPHA_CLIPA = CRATE_ALPHA._replace(
    name="the vision tower of a CRATE-alpha CLIPA",
    keys=crate_alpha.CLIPA_KEYS,
    unused={r"(?!visual\.).+": "of the text tower, an ordinary Transformer"},
    mark=r"^visual\.transformer\.resblocks\.\d+\.mlp\.c_fc$",
    dimensions={
        "visual.conv1.weight": 4,
        "visual.class_embedding": 1,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "visual.transformer.resblocks.0.mlp.c_fc": 2,
    },
    read_config=crate_alpha.read_clipa_config,
    prepare=crate_alpha.prepare_clipa,
    added={
        "visual.conv1.bias": "zero: the tower has no such bias",
        "visual.proj_bias": "zero: the tower has no such bias",
    },
)
# A checkpoint is of the first layout that has a mark among its keys; the last one's is in every key.
LAYOUTS = (CRATE_ALPHA, CRATE_ALPHA_JAX, CRATE_ALPHA_CLIPA, CRATE, CRATE_MAE)
LAYER = re.compile(r"((?<=blocks\.|layers\.)|(?<=encoderblock_))\d+")


def find_layout(state_dict: Mapping[str, torch.Tensor]) -> Layout:
    """Tell by its keys of which model an official state dict is."""
    return next(layout for layout in LAYOUTS if any(re.search(layout.mark, key) for key in state_dict))


def convert_key(key: str, keys: Mapping[str, str]) -> str:
    """Return our name of an official key with `Layout.keys`, the official name of ours with `Layout.official_keys`.

    Raises:
        ValueError: If the official code has no such key, or never uses it.
    """
    layer = LAYER.search(key)
    pattern = to_pattern(key)
    if pattern not in keys:
        raise ValueError(f"`{key}` is not a weight that the official code uses.")
    return keys[pattern].format(i=layer[0] if layer else "")


def to_pattern(key: str) -> str:
    """Replace the number of the layer by `{i}`, as the key tables have it."""
    return LAYER.sub("{i}", key, count=1)
