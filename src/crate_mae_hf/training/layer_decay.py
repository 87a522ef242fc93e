"""Layer-wise learning rate decay: the closer to the images, the slower a layer learns."""

import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
EMBEDDINGS = re.compile(r"(?:^|\.)embeddings\.")
TOKENS_AND_POSITIONS = re.compile(r"(?:^|[._])(?:tokens?|pos_embed|position\w*)(?:$|\.)")


def layer_indices(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter by name: 0 the embeddings, then the layers, last the final norm and the head.

    Raises:
        ValueError: If the model has no parameters in numbered layers.
    """
    names = [name for name, _ in model.named_parameters()]
    numbers = {name: int(match[1]) + 1 for name in names if (match := LAYER.search(name))}
    if not numbers:
        raise ValueError(f"`layer_decay`: cannot tell the layers of {type(model).__name__} by their names.")
    last = max(numbers.values()) + 1
    return {name: numbers.get(name, 0 if EMBEDDINGS.search(name) else last) for name in names}


def apply_layer_decay(optimizer: torch.optim.Optimizer, model: nn.Module, layer_decay: float) -> None:
    r"""Split an optimizer's groups by layer, and set the learning rate of each.

        lr_l = lr * layer_decay^(L + 1 - l),   l = 0 embeddings, 1 ... L layers, L + 1 final norm and head

    "BEiT: BERT Pre-Training of Image Transformers", Bao et al., ICLR 2022. To be called before the scheduler is made:
    schedulers scale the learning rate that a group starts with. The group of the head comes first, as its learning rate
    is the one that Trainer logs.

    Args:
        optimizer: Optimizer of the model's parameters, or of some of them.
        model: Model with the parameters' names.
        layer_decay: Factor of the learning rate from one layer to the one below it.

    Raises:
        ValueError: If the model has no parameters in numbered layers.
    """
    indices = layer_indices(model)
    last = max(indices.values())
    exponents = {parameter: last - indices[name] for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts = defaultdict(list)
        for parameter in group["params"]:
            parts[exponents[parameter]].append(parameter)
        groups += [
            {**group, "params": parameters, "lr": group["lr"] * layer_decay**exponent, "layer": last - exponent}
            for exponent, parameters in parts.items()
        ]
    optimizer.param_groups[:] = sorted(groups, key=lambda group: -group["layer"])


def decays_weight(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay makes sense: not for norms, biases and scales, which are vectors, tokens and positions."""
    return parameter.ndim > 1 and not TOKENS_AND_POSITIONS.search(name)
