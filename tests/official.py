"""Random checkpoints with the keys and shapes of the official code."""

import torch

from crate_mae_hf import CrateMaeConfig
from crate_mae_hf.configuration_crate import CrateEncoderConfig
from crate_mae_hf.conversion import CRATE_MAE, convert_key
from crate_mae_hf.conversion.layouts import LAYOUTS
from crate_mae_hf.crate_patches import sincos_position_table


def make_official(config: CrateEncoderConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A random state dict; CRATE-MAE's with its position tables and the weights that it never uses."""
    layout = next(layout for layout in LAYOUTS if layout.config_class is type(config))
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in layout.model_class(config).state_dict().items()}
    state_dict = {convert_key(key, layout.official_keys): torch.randn(shape) * 0.1 for key, shape in shapes.items()}
    if isinstance(config, CrateMaeConfig):
        width = config.hidden_size
        table = sincos_position_table(width, config.grid_size)
        state_dict |= {"decoder_pos_embed": table, "pos_embed": table.clone()}
        state_dict |= {"decoder_embed.weight": torch.randn(width, width), "decoder_embed.bias": torch.randn(width)}
    return {key: value.to(dtype) for key, value in state_dict.items()}


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
