"""Vision models of Transformers without their heads: trained, by name or folder, or the same with fresh weights."""

import time

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from ..adapters import fill_vit_mae, knows_positions
from ..loading import find_missing_weights, load

logger = logging.get_logger(__name__)


def fastest_dtype(device: str, size: int = 768) -> torch.dtype:
    """Return bfloat16 where a device multiplies matrices faster in it, float32 elsewhere; measured in a moment.

    Many CPUs have no instructions for bfloat16, and take twice as long as with float32.

    Args:
        device: Device that is to run a model.
        size: Rows and columns of the matrices.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix, times = torch.randn(size, size, device=device).to(dtype), []
        for _ in range(10):
            start = time.perf_counter()  # PyTorch's own timer imports its tools for extensions, which complain
            (matrix @ matrix)[0, 0].item()  # waits for the device
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return min(seconds, key=seconds.__getitem__)


def load_encoder(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a vision model without its head.

    Weights that features do not need may be missing (a pooler, a mask token); they are set to zero.

    Args:
        name: A folder, or a model on the Hub.
        dtype: Of the weights.

    Raises:
        ValueError: If there is no such model, its weights are incomplete, or it is none for images alone.
    """
    config = load(AutoConfig, name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # weights of heads that are left out are no news; those that are missing are checked
    try:
        model, info = load(AutoModel, name, config=config, dtype=dtype, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"`model_name_or_path`: {name} is a {type(model).__name__}, which takes `{model.main_input_name}`; a model "
            "that takes images alone is needed."
        )
    needed = [key for key in find_missing_weights(model, info["missing_keys"]) if not key.endswith("mask_token")]
    if needed:
        raise ValueError(
            f"`model_name_or_path`: {name} lacks {len(needed)} weights of {type(model).__name__}, among them "
            f"{needed[0]}: its features would be random."
        )
    with torch.no_grad():
        for key in info["missing_keys"]:
            model.get_parameter(key).zero_()
    if not knows_positions(model):
        logger.warning(
            f"{name} is a ViTMAE whose positions are all zero: it cannot tell where a patch is. Transformers 5.23 "
            "leaves them so in a ViTMAE made from a configuration."
        )
    return model.eval()


def random_encoder(config: PreTrainedConfig, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Make the model of a configuration with fresh weights, the same for the same seed.

    A ViTMAE is initialised as MAE's authors do, see `fill_vit_mae`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        fill_vit_mae(model)
    return model.to(dtype).eval()
