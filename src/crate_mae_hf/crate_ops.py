"""The operators of CRATE as functions: as the papers have them, then faster, to the same values and gradients.

Tokens are rows: d is the width of a token, T the number of tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary


def naive_ista_step(
    hidden_states: torch.Tensor, dictionary: torch.Tensor, step_size: float, threshold: float
) -> torch.Tensor:
    r"""One proximal gradient (ISTA) step towards a sparse, non-negative code of the tokens, as the papers have it.

        Z' = ReLU(Z + eta (Z - Z Dᵀ) D - eta lambda)

    It descends 1/2 |Z - A Dᵀ|² + lambda |A|_1 over A >= 0 from A = Z. "White-Box Transformers via Sparse Rate
    Reduction", Yu et al., NeurIPS 2023.

    Args:
        hidden_states: Tokens Z of shape `(..., d)`.
        dictionary: D of shape `(d, d)`.
        step_size: eta.
        threshold: eta lambda.
    """
    residual = hidden_states - nn.functional.linear(hidden_states, dictionary)
    return (hidden_states + step_size * (residual @ dictionary) - threshold).relu()


def sparse_codes(
    hidden_states: torch.Tensor, dictionary: torch.Tensor, step_size: float, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Two proximal gradient (ISTA) steps from zero towards a sparse, non-negative code in a wide dictionary.

        A_1 = ReLU(eta Z D - eta lambda),   A_2 = ReLU(A_1 + eta (Z - A_1 Dᵀ) D - eta lambda)

    They descend 1/2 |Z - A Dᵀ|² + lambda |A|_1 over A >= 0 from A = 0, as long as eta times the largest eigenvalue of
    D Dᵀ is at most 1. "Scaling White-Box Transformers for Vision", Yang et al., NeurIPS 2024. The step does not fold:
    Dᵀ D would be m x m.

    Args:
        hidden_states: Tokens Z of shape `(..., d)`.
        dictionary: D of shape `(d, m)`; atoms are columns.
        step_size: eta.
        threshold: eta lambda.

    Returns:
        The codes A_1 and A_2, `(..., m)`.
    """
    # In place on what is nobody else's, as in `ista_step`.
    first = (hidden_states @ dictionary).mul_(step_size).sub_(threshold).relu_()
    residual = hidden_states - nn.functional.linear(first, dictionary)
    second = torch.add(first, residual @ dictionary, alpha=step_size).sub_(threshold).relu_()
    return first, second


class FoldDictionary(torch.autograd.Function):
    r"""Fold the two products of an ISTA step into one matrix.

        M = eta (D - Dᵀ D),   dL/dD = eta (G - D (G + Gᵀ)) with G = dL/dM

    The gradient takes one product, where autograd would take two.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(dictionary: torch.Tensor, step_size: float) -> torch.Tensor:
        return torch.addmm(dictionary, dictionary.T, dictionary, beta=step_size, alpha=-step_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, float], output: torch.Tensor) -> None:
        dictionary, ctx.step_size = inputs
        ctx.save_for_backward(dictionary)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (dictionary,) = ctx.saved_tensors
        dictionary_cast = dictionary.to(gradient.dtype)  # under autocast M has the lower precision
        symmetric = gradient + gradient.T
        gradient = torch.addmm(gradient, dictionary_cast, symmetric, beta=ctx.step_size, alpha=-ctx.step_size)
        return gradient.to(dictionary.dtype), None


# What computes normed tokens again: hidden_states, weight, bias and eps of the layer norm.
NormInputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]


class NormedProduct(torch.autograd.Function):
    r"""Product of normed tokens with a matrix that keeps the norm's input for the backward, not its output.

        Y = LN(X) A,   dL/dLN(X) = G Aᵀ,   dL/dA = LN(X)ᵀ G with G = dL/dY

    The norm itself keeps X too, so that with LN(X) computed again one tensor of all tokens less is held.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        normed: torch.Tensor,
        matrix: torch.Tensor,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        return normed @ matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        normed, *saved, ctx.eps = inputs
        ctx.dtype = normed.dtype  # under autocast that of the weights, whatever the norm was given
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        matrix, hidden_states, weight, bias = ctx.saved_tensors
        gradient_normed = gradient_matrix = None
        if ctx.needs_input_grad[0]:
            gradient_normed = (gradient @ matrix.to(gradient.dtype).T).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            normed = nn.functional.layer_norm(hidden_states.to(ctx.dtype), weight.shape, weight, bias, ctx.eps)
            normed = normed.to(gradient.dtype).reshape(-1, normed.shape[-1])
            gradient = gradient.reshape(-1, gradient.shape[-1])
            # Laid out as the matrix is: autograd would copy the gradient of a transposed dictionary otherwise.
            transposed = matrix.stride(0) == 1
            gradient_matrix = (gradient.T @ normed).T if transposed else normed.T @ gradient
            gradient_matrix = gradient_matrix.to(matrix.dtype)
        return gradient_normed, gradient_matrix, None, None, None, None


def apply_norm(norm: nn.LayerNorm, hidden_states: torch.Tensor) -> tuple[torch.Tensor, NormInputs | None]:
    """Return `norm(hidden_states)`, and what computes it again in a backward, for `normed_product` and `ista_step`.

    The latter is None where it may give something else: for a norm that is not plain, or has hooks, which may change
    what they are shown. Compilers decide for themselves what to keep.
    """
    normed = norm(hidden_states)
    if (
        type(norm) is nn.LayerNorm
        and type(norm.weight) is nn.Parameter  # no shard, nothing quantized or traced by a function transform
        and not (norm._forward_hooks or norm._forward_pre_hooks or "forward" in norm.__dict__)
        and not nn.modules.module._has_any_global_hook()
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # which cannot record custom functions
    ):
        return normed, (hidden_states, norm.weight, norm.bias, norm.eps)
    return normed, None


def normed_product(normed: torch.Tensor, inputs: NormInputs | None, matrix: torch.Tensor) -> torch.Tensor:
    """Return `normed @ matrix`, without keeping `normed` for the backward where its norm's inputs are given."""
    return normed @ matrix if inputs is None else NormedProduct.apply(normed, matrix, *inputs)


def ista_step(
    hidden_states: torch.Tensor,
    dictionary: torch.Tensor,
    step_size: float,
    threshold: float,
    norm_inputs: NormInputs | None = None,
    training: bool = False,
) -> torch.Tensor:
    r"""The step of `naive_ista_step` in one product over the tokens, where that is worth forming M, d x d.

        Z' = ReLU(Z + Z M - eta lambda),   M = eta (D - Dᵀ D)

    The identity stays outside M, so that low precision rounds the step, not the tokens. Without gradients M is kept
    from call to call.

    Args:
        hidden_states: Tokens Z of shape `(..., d)`.
        dictionary: D of shape `(d, d)`.
        step_size: eta.
        threshold: eta lambda. (Not lambda: a compiler cannot share eta with a custom function.)
        norm_inputs: As `apply_norm` gives them, where its tokens are `hidden_states`: training then keeps less.
        training: Whether weights are about to change.
    """
    if torch.jit.is_tracing():  # records neither custom functions nor where M comes from
        return naive_ista_step(hidden_states, dictionary, step_size, threshold)
    if not training and may_keep_folded(dictionary):
        step = hidden_states @ kept_folded_dictionary(dictionary, step_size)
    elif is_worth_folding(hidden_states):
        step = normed_product(hidden_states, norm_inputs, FoldDictionary.apply(dictionary, step_size))
    else:
        return naive_ista_step(hidden_states, dictionary, step_size, threshold)
    # In place after the first sum, whose memory is nobody else's: these passes wait for memory, not for arithmetic.
    return (hidden_states + step).sub_(threshold).relu_()


def is_worth_folding(hidden_states: torch.Tensor) -> bool:
    """Whether forming M pays: with the backward, T tokens take 3 T + 2 d rows of products instead of 6 T."""
    if torch.compiler.is_exporting():
        # A graph for any batch size. ONNX runtimes fold constants when they load it, other programs at every call.
        return torch.onnx.is_in_onnx_export()
    return 3 * hidden_states.shape[:-1].numel() > 2 * hidden_states.shape[-1]


# Folded dictionaries for inference: dictionary -> (a copy of it, eta, M). An entry goes when its dictionary does, and
# belongs to no module: copies and checkpoints never hold it.
_folded_dictionaries = WeakTensorKeyDictionary()


def may_keep_folded(dictionary: torch.Tensor) -> bool:
    """Whether M may be kept: without gradients, where comparing the weights does not make a device wait.

    Weights that are no plain parameter are shards, quantized, or traced by a function transform.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or type(dictionary) is not nn.Parameter
        or dictionary.device.type != "cpu"
    )


def kept_folded_dictionary(dictionary: torch.Tensor, step_size: float) -> torch.Tensor:
    """Return M, formed anew when the dictionary has changed, by whatever means."""
    if (entry := _folded_dictionaries.get(dictionary)) is not None:
        copy, copied_step_size, folded = entry
        if copy.dtype == dictionary.dtype and copied_step_size == step_size and torch.equal(copy, dictionary):
            return folded
    with torch.autocast("cpu", enabled=False):  # M has to serve outside autocast too
        folded = FoldDictionary.apply(dictionary.detach(), step_size)
    _folded_dictionaries[dictionary] = (dictionary.detach().clone(), step_size, folded)
    return folded
