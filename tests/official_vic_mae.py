"""The golden values of ViC-MAE, and the weights of an official MAE under Transformers' names."""

import json
import re

import torch
from golden import read_golden
from transformers import ViTMAEConfig, ViTMAEForPreTraining

# Settings of a small ViTMAE, with 16 patches of images of 32 x 32.
SMALL_VIT_MAE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32, "image_size": 32, "patch_size": 8,
}  # fmt: skip
# Names of the official MAE -> those of Transformers.
MAE_NAMES = (
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^blocks\.", "vit.layers."),
    (r"^norm\.", "vit.layernorm."),
    (r"^decoder_(embed|norm|pred|pos_embed)", r"decoder.decoder_\1"),
    (r"^mask_token", "decoder.mask_token"),
    (r"^cls_token", "vit.embeddings.cls_token"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)


def read_reference() -> tuple[dict, dict[str, torch.Tensor]]:
    """The official settings and all tensors."""
    metadata, tensors = read_golden("vic_mae_micro")
    return json.loads(metadata["config"]), tensors


def rename(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What lies under a prefix, without the projector, by Transformers' names; query, key and value become three."""
    renamed = {}
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if name == key or name.startswith("projector."):
            continue
        for pattern, replacement in MAE_NAMES:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = third
        else:
            renamed[name] = value
    return renamed


def to_vit_mae(official: dict, tensors: dict[str, torch.Tensor], prefix: str = "checkpoint.") -> ViTMAEForPreTraining:
    """A ViTMAE of Transformers with the weights of the official MAE."""
    config = ViTMAEConfig(
        image_size=official.get("img_size", official.get("image_size")),
        patch_size=official["patch_size"],
        hidden_size=official["embed_dim"],
        num_hidden_layers=official["depth"],
        num_attention_heads=official["num_heads"],
        intermediate_size=int(official["embed_dim"] * official["mlp_ratio"]),
        decoder_hidden_size=official["decoder_embed_dim"],
        decoder_num_hidden_layers=official["decoder_depth"],
        decoder_num_attention_heads=official["decoder_num_heads"],
        decoder_intermediate_size=int(official["decoder_embed_dim"] * official["mlp_ratio"]),
        mask_ratio=official["mask_ratio"],
        norm_pix_loss=official["norm_pix_loss"],
        layer_norm_eps=official["layer_norm_eps"],
    )
    model = ViTMAEForPreTraining(config)
    model.load_state_dict(rename(tensors, prefix))
    return model
