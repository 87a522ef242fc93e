"""The gradient of a loss through two lower levels of optimisation, by finite differences."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

Loss = Callable[[], torch.Tensor]


def hypergradient(
    pretrain_loss: Loss,
    finetune_loss: Loss,
    validation_loss: Loss,
    encoder_parameters: Sequence[torch.Tensor],
    head_parameters: Sequence[torch.Tensor],
    mask_parameters: Sequence[torch.Tensor],
    alpha: float = 0.01,
) -> list[torch.Tensor]:
    r"""Gradient of the validation loss with respect to T, which acts through E alone, on which C was trained.

        v_C = dL_val/dC,   v_E = dL_val/dE,   cross = -(d²L_ft/dE dC) v_C
        g_T = -(d²L_pre/dT dE) cross - (d²L_pre/dT dE) v_E

    "Downstream Task Guided Masking Learning in Masked Autoencoders Using Multi-Level Optimization", Guo, Zhang and Xie,
    TMLR 2025: one step of each lower level is taken for its solution, the step sizes left out. Each product is a
    `mixed_product` of its own. No `.grad` is read or written, and all weights are afterwards what they were.

    Args:
        pretrain_loss: L_pre, of the weights T and E.
        finetune_loss: L_ft, of E and C.
        validation_loss: L_val, of E and C.
        encoder_parameters: E: all that L_pre trains, the decoder too.
        head_parameters: C: what L_ft trains.
        mask_parameters: T.
        alpha: Length of the step in weight space over which differences are taken.

    Returns:
        g_T, a tensor per one of `mask_parameters`.
    """
    lower = [*head_parameters, *encoder_parameters]
    gradients = torch.autograd.grad(validation_loss(), lower, materialize_grads=True)
    v_head, v_encoder = gradients[: len(head_parameters)], gradients[len(head_parameters) :]
    cross = mixed_product(finetune_loss, encoder_parameters, head_parameters, v_head, alpha)
    through_head = mixed_product(pretrain_loss, mask_parameters, encoder_parameters, cross, alpha)
    direct = mixed_product(pretrain_loss, mask_parameters, encoder_parameters, v_encoder, alpha)
    return [first + second for first, second in zip(through_head, direct, strict=True)]


def mixed_product(
    loss: Loss,
    parameters: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    vector: Sequence[torch.Tensor],
    alpha: float,
) -> list[torch.Tensor]:
    r"""Negative product of mixed second derivatives with a vector, by a central difference.

        -(d²L/dP dW) v = -[dL/dP(W + eps v) - dL/dP(W - eps v)] / (2 eps) + O(eps²),   eps = alpha / |v|

    What the loss draws at random, such as dropout, is the same on both sides.

    Args:
        loss: L.
        parameters: P.
        weights: W, changed in place meanwhile, without gradients, and put back exactly.
        vector: v, a tensor per one of `weights`.
        alpha: Length of the step from W to either side.

    Returns:
        A tensor per one of `parameters`; zeros for a vector of zeros.
    """
    norm = nn.utils.get_total_norm(vector)
    if norm == 0:
        return [torch.zeros_like(parameter) for parameter in parameters]
    eps = alpha / norm
    devices = [weights[0].device] if weights[0].is_cuda else []
    with _borrowed(weights) as kept:
        _shift(weights, kept, vector, eps)
        with torch.random.fork_rng(devices):
            above = torch.autograd.grad(loss(), parameters, materialize_grads=True)
        _shift(weights, kept, vector, -eps)
        below = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    return [(low - high) / (2 * eps) for low, high in zip(below, above, strict=True)]


@contextmanager
def _borrowed(weights: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Context manager: weights take no gradients and may be changed; gives what they were, and puts it back."""
    kept = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield kept
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
        for weight in weights:
            weight.requires_grad_(True)


@torch.no_grad()
def _shift(
    weights: Sequence[torch.Tensor], kept: Sequence[torch.Tensor], vector: Sequence[torch.Tensor], step: torch.Tensor
) -> None:
    """Set `weights` to what they were and `step` times the vector."""
    for weight, value, direction in zip(weights, kept, vector, strict=True):
        weight.copy_(value + step * direction)
