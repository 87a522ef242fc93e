"""The models that are compared, of one size, and what one step of each mode is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from benchmarks.literal import LiteralCrateMae
from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining

AUTOENCODERS = ("crate_mae", "crate_mae_checkpointed", "literal", "vit_mae", "vit_mae_768")
ENCODERS = ("crate_mae", "literal", "vit", "dinov2")
MODELS = {
    "train": AUTOENCODERS,
    "inference": ("crate_mae", "literal", "vit_mae", "vit_mae_768"),
    "features": ENCODERS,
}
LABELS = {
    "crate_mae": "CRATE-MAE",
    "crate_mae_checkpointed": "CRATE-MAE, activation checkpointing",
    "literal": "CRATE-MAE, literal port",
    "vit_mae": "ViTMAE, standard decoder",
    "vit_mae_768": "ViTMAE, decoder as wide as the encoder",
    "vit": "ViT",
    "dinov2": "DINOv2",
}


@dataclass(frozen=True)
class Size:
    """The size that all models share."""

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    image_size: int = 224
    patch_size: int = 16

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def build(name: str, mode: str, size: Size) -> nn.Module:
    """Make a model with fresh weights; for features its encoder alone.

    ViTMAE's position tables are zero when it is made from a bare configuration (transformers 5.23), which no timing
    sees.
    """
    shared: dict[str, Any] = {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "image_size": size.image_size,
        "patch_size": size.patch_size,
    }
    model: nn.Module
    if name in ("crate_mae", "crate_mae_checkpointed", "literal"):
        config = CrateMaeConfig(**shared)
        model = CrateMaeForPreTraining(config)
        if name == "literal":
            weights = model.state_dict()
            model = LiteralCrateMae(config)
            model.load_state_dict(weights)
        elif name == "crate_mae_checkpointed":
            model.activation_checkpointing_enable()
        return model.crate_mae if mode == "features" else model
    shared["intermediate_size"] = 4 * size.hidden_size
    if name in ("vit_mae", "vit_mae_768"):
        # Beside a Base encoder the standard decoder is 512 wide, and either one eight layers deep: two thirds.
        width = size.hidden_size if name == "vit_mae_768" else size.hidden_size * 2 // 3
        return ViTMAEForPreTraining(
            ViTMAEConfig(
                **shared,
                decoder_hidden_size=width,
                decoder_intermediate_size=4 * width,
                decoder_num_hidden_layers=max(1, size.num_layers * 2 // 3),
                decoder_num_attention_heads=16 if width % 16 == 0 else size.num_heads,
            )
        )
    if name == "vit":
        return ViTModel(ViTConfig(**shared), add_pooling_layer=False)
    del shared["intermediate_size"]
    return Dinov2Model(Dinov2Config(**shared, mlp_ratio=4))


class Step:
    """One step of a mode, with fixed images.

    `train` is forward, backward and AdamW's update (PyTorch's fused one), in bfloat16 under autocast over float32
    weights. `inference` reconstructs masked images, `features` encodes whole ones, both in bfloat16 with weights in
    bfloat16.

    Args:
        name: Name of the model.
        mode: `"train"`, `"inference"` or `"features"`.
        size: Size of the model.
        dtype: Precision of the computation.
        device: Device that computes.
        compiled: Whether the model goes through `torch.compile`.
    """

    def __init__(self, name: str, mode: str, size: Size, dtype: torch.dtype, device: str, compiled: bool = False):
        torch.manual_seed(0)
        self.mode, self.size, self.device = mode, size, device
        self.autocast = mode == "train" and dtype != torch.float32
        self.dtype = torch.float32 if mode == "train" else dtype
        self.amp_dtype = dtype
        self.model = build(name, mode, size).to(device, self.dtype).train(mode == "train")
        self.num_parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.takes_loss_alone = isinstance(self.model, CrateMaeForPreTraining)
        if mode == "train":
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.call: Callable = torch.compile(self.model) if compiled else self.model
        self.inputs: dict[str, torch.Tensor] = {}

    def set_batch_size(self, batch_size: int) -> None:
        """Draw images, and noise for the masks."""
        shape = (batch_size, 3, self.size.image_size, self.size.image_size)
        self.inputs = {"pixel_values": torch.randn(shape).to(self.device, self.dtype)}
        if self.mode != "features":
            self.inputs["noise"] = torch.rand(batch_size, self.size.num_patches).to(self.device)

    def forward_backward(self) -> None:
        """Forward and backward, as a Trainer calls the model."""
        context: AbstractContextManager = (
            torch.autocast(torch.device(self.device).type, self.amp_dtype) if self.autocast else nullcontext()
        )
        with context:
            options = {"return_logits": False} if self.takes_loss_alone else {}
            loss = self.call(**self.inputs, **options).loss
        loss.backward()

    def update(self) -> None:
        """AdamW's update."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def forward(self) -> None:
        """The forward alone."""
        self.call(**self.inputs)

    @property
    def phases(self) -> dict[str, Callable[[], None]]:
        """The parts that a step consists of, in their order."""
        if self.mode == "train":
            return {"forward and backward": self.forward_backward, "update": self.update}
        return {"forward": self.forward}
