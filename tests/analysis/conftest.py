"""Models that the analysis reads: CRATE-MAE, and ViTMAE for comparison."""

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from crate_mae_hf import (
    CrateAlphaConfig,
    CrateAlphaForImageClassification,
    CrateConfig,
    CrateForImageClassification,
    CrateMaeConfig,
    CrateMaeForPreTraining,
)
from crate_mae_hf.crate_patches import sincos_position_table


@pytest.fixture
def model(config: CrateMaeConfig) -> CrateMaeForPreTraining:
    """In training mode but for one module, so that a test sees whether both survive."""
    model = CrateMaeForPreTraining(config).train()
    model.crate_mae.layers[1].eval()
    return model


@pytest.fixture
def crate() -> CrateForImageClassification:
    """A supervised CRATE, which has neither decoder nor mask token."""
    config = CrateConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8, num_labels=5
    )
    return CrateForImageClassification(config).train()


@pytest.fixture
def alpha() -> CrateAlphaForImageClassification:
    """A CRATE-alpha, whose sparse code stays inside its layers."""
    config = CrateAlphaConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8, num_labels=5
    )
    return CrateAlphaForImageClassification(config).train()


@pytest.fixture
def vit_mae() -> ViTMAEForPreTraining:
    """A ViTMAE whose position tables are filled: Transformers leaves them at zero in a model made from scratch."""
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    model = ViTMAEForPreTraining(config).train()
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.copy_(sincos_position_table(32, (4, 4)))
        model.decoder.decoder_pos_embed.copy_(sincos_position_table(16, (4, 4)))
    return model


class State:
    """All that a forward could leave behind in a model, and in the generator of random numbers."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.before = self.read()

    def read(self) -> dict:
        modules = dict(self.model.named_modules())
        return {
            "weights": {name: value.clone() for name, value in self.model.state_dict().items()},
            "gradients": {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None},
            "requires_grad": {name: parameter.requires_grad for name, parameter in self.model.named_parameters()},
            "training": {name: module.training for name, module in modules.items()},
            "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
            "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
            "config": self.model.config.to_dict(),
            "grad_enabled": torch.is_grad_enabled(),
            "random": torch.get_rng_state(),
        }

    def assert_unchanged(self) -> None:
        after = self.read()
        for name in ("weights", "gradients", "random"):
            torch.testing.assert_close(after.pop(name), self.before[name], rtol=0, atol=0)
        assert after == {name: self.before[name] for name in after}


@pytest.fixture
def state() -> type[State]:
    return State
