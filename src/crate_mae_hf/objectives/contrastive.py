"""Contrastive losses between two views of the same things."""

from typing import Any

import torch
from torch import distributed
from torch.nn import functional as F


class _Gather(torch.autograd.Function):
    """Stack a tensor over all processes, (world_size, ...); its gradient is the sum of what all processes have."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


def world_size() -> int:
    """Return the number of processes that train together, 1 for a single one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Normalised, temperature-scaled cross-entropy: tell an item's other view from all other items of the batch.

        z = normalize([u_1; u_2]),   loss = mean_i -log( exp(z_i·z_pos(i) / tau) / sum_{j != i} exp(z_i·z_j / tau) )

    "A Simple Framework for Contrastive Learning of Visual Representations", Chen et al., ICML 2020. Guessing costs
    ln(2B - 1), where B counts the items of all processes.

    With several processes each takes the mean over its own items, against the items of all. The mean of that over the
    processes is the loss of the joint batch, and the mean of the gradients, which `DistributedDataParallel` takes, is
    the joint gradient.

    Args:
        first: One view of each item, `(batch_size, d)`; every process has as many items.
        second: The other view, in the same order.
        temperature: tau; the lower, the more the nearest items count.

    Raises:
        ValueError: If the views differ in shape, or the temperature is not positive.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"`first` and `second` must both have shape (batch_size, d), got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    with torch.autocast(first.device.type, enabled=False):
        views = torch.cat([first, second])
        views = F.normalize(views.to(torch.promote_types(views.dtype, torch.float32)), dim=1)
        # Items are counted through over all processes: positives and oneself are where this process begins.
        items, begin = views, 0
        if world_size() > 1:
            items, begin = _Gather.apply(views).flatten(0, 1), distributed.get_rank() * len(views)
        numbers = torch.arange(len(views), device=views.device)
        similarities = views @ items.T / temperature
        similarities = similarities.index_put((numbers, begin + numbers), similarities.new_tensor(-torch.inf))
        return F.cross_entropy(similarities, begin + numbers.roll(len(first)))
