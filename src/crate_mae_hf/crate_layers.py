"""The layers that all CRATE models are made of: compress the tokens against subspaces, then sparsify them.

"White-Box Transformers via Sparse Rate Reduction", Yu, Buchanan, Pai, Chu, Wu, Tong, Haeffele, Ma, NeurIPS 2023.
Formulas follow the official code, github.com/Ma-Lab-Berkeley/CRATE, with tokens as rows: d is the width of a token, K
the number of heads, N = L + 1 the cls token and L patches.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_crate import CrateEncoderConfig
from .configuration_crate_alpha import CrateAlphaConfig
from .crate_ops import NormInputs, apply_norm, ista_step, sparse_codes


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(query keyᵀ * scaling + mask) value as `(batch_size, N, num_heads, head_dim)`, and the softmax.

    A boolean mask, True where a token is attended to, stands for 0 and minus infinity.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    attention_probs = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_probs = nn.functional.dropout(attention_probs, p=dropout, training=module.training)
    return (attention_probs @ value).transpose(1, 2).contiguous(), attention_probs


def rename_out_proj(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: the projection behind MSSA was named `out_proj` before anything was published."""
    for name in ("weight", "bias"):
        if f"{prefix}out_proj.{name}" in state_dict:
            state_dict[f"{prefix}o_proj.{name}"] = state_dict.pop(f"{prefix}out_proj.{name}")


def select_tokens(hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the tokens `(batch_size, M, d)` of `(batch_size, N, d)` at the positions `(batch_size, M)`."""
    first = torch.arange(hidden_states.shape[0], device=positions.device) * hidden_states.shape[1]
    rows = (first.unsqueeze(1) + positions).flatten()  # the backward of a gather would keep an index for each number
    return hidden_states.flatten(0, 1).index_select(0, rows).unflatten(0, positions.shape)


class CrateMSSA(nn.Module):
    r"""Multi-head subspace self-attention (MSSA): one step that compresses tokens against K learned subspaces.

        W = Z Uᵀ,   head_k = softmax(W_k W_kᵀ / sqrt(d / K)) W_k,   MSSA(Z) = [head_1, ..., head_K] Oᵀ + b

    The one projection U (`subspace_proj`, without bias) is query, key and value at once; U_k is a basis of subspace k.
    `o_proj` holds O and b, and is left out where there is one head of full width, as in the official code.

    Args:
        config: Gives width, dropout and the attention implementation.
        num_heads: Number K of subspaces; the encoder's and the decoder's may differ.
        bias: Whether there is a b.
    """

    def __init__(self, config: CrateEncoderConfig, num_heads: int, bias: bool = True):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.subspace_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        width = config.hidden_size
        self.o_proj = nn.Linear(width, width, bias=bias) if num_heads > 1 else nn.Identity()
        cast(Any, self.o_proj).is_mssa_output = True  # for initialisation, which sees one module at a time
        self.register_load_state_dict_pre_hook(rename_out_proj)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        query_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map `(batch_size, N, d)` to the same shape, and to the attention maps where the implementation gives them.

        With an attention mask `(batch_size or 1, K or 1, N, N)`, True where a token is attended to (or what is added to
        the scores), a token sees only those. With query positions `(batch_size, M)` the tokens there alone are mapped,
        to `(batch_size, M, d)`; they still see all.
        """
        projected = self.subspace_proj(hidden_states)
        codes = queries = projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, K, N, d / K)
        if query_positions is not None:
            selected = select_tokens(projected, query_positions)
            queries = selected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        outputs, attention_probs = attention_interface(
            self,
            queries,
            codes,
            codes,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(outputs.flatten(2)), attention_probs


class CrateISTA(nn.Module):
    r"""One proximal gradient (ISTA) step towards a sparse, non-negative code of the tokens.

        Z' = ReLU(Z + eta (Z - Z Dᵀ) D - eta lambda)

    D (`dictionary`, d x d) is the learned dictionary: the step descends 1/2 |Z - A Dᵀ|² + lambda |A|_1 over A >= 0 from
    A = Z. There is no skip connection around it, and the result is never negative.

    Args:
        hidden_size: Width d of a token.
        step_size: Step size eta.
        sparsity_weight: Sparsity weight lambda.
    """

    def __init__(self, hidden_size: int, step_size: float, sparsity_weight: float):
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.step_size = step_size
        self.threshold = step_size * sparsity_weight

    def forward(self, hidden_states: torch.Tensor, norm_inputs: NormInputs | None = None) -> torch.Tensor:
        """Map `(..., d)` to the same shape; with the inputs of the norm that gave the tokens, training keeps less."""
        if self._forward_pre_hooks:  # which may have changed the tokens
            norm_inputs = None
        return ista_step(hidden_states, self.dictionary, self.step_size, self.threshold, norm_inputs, self.training)

    def extra_repr(self) -> str:
        return f"step_size={self.step_size}, threshold={self.threshold}"


class CrateAlphaISTA(nn.Module):
    r"""Two ISTA steps towards a sparse code in an overcomplete dictionary, and back to a token by another dictionary.

        A_1 = ReLU(eta Z D - eta lambda)
        A_2 = ReLU(A_1 + eta (Z - A_1 Dᵀ) D - eta lambda)
        Z' = A_2 D̂ᵀ

    The steps descend 1/2 |Z - A Dᵀ|² + lambda |A|_1 over A >= 0 from A = 0. D (`dictionary`) and D̂
    (`output_dictionary`) are d x m, atoms are columns. The codes A, m wide and never negative, stay inside: tokens are
    dense and signed, unlike those of [`CrateISTA`].

    Args:
        hidden_size: Width d of a token.
        num_atoms: Number m of atoms.
        step_size: Step size eta.
        sparsity_weight: Sparsity weight lambda.
        decoupled: Whether D̂ has weights of its own; otherwise it is D.
    """

    def __init__(self, hidden_size: int, num_atoms: int, step_size: float, sparsity_weight: float, decoupled: bool):
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(hidden_size, num_atoms))
        self.output_dictionary = nn.Parameter(torch.empty(hidden_size, num_atoms)) if decoupled else None
        self.step_size = step_size
        self.threshold = step_size * sparsity_weight

    def codes(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes after the first and the second step, `(..., m)`, of tokens `(..., d)`."""
        return sparse_codes(hidden_states, self.dictionary, self.step_size, self.threshold)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Return the tokens `(..., d)` that codes `(..., m)` stand for."""
        dictionary = self.dictionary if self.output_dictionary is None else self.output_dictionary
        return nn.functional.linear(code, dictionary)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(..., d)` to the same shape."""
        return self.decode(self.codes(hidden_states)[1])

    def extra_repr(self) -> str:
        return f"step_size={self.step_size}, threshold={self.threshold}"


class CrateDropPath(nn.Module):
    r"""Stochastic depth: in training, leave out the whole branch for some images.

        x' = x b / (1 - p),   b = 0 with probability p, else 1, drawn for each image

    "Deep Networks with Stochastic Depth", Huang et al., ECCV 2016.

    Args:
        drop_prob: Probability p.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(batch_size, N, d)` to the same shape."""
        if not self.training or self.drop_prob == 0:
            return hidden_states
        kept = torch.rand(hidden_states.shape[0], 1, 1, device=hidden_states.device) >= self.drop_prob
        return hidden_states * kept / (1 - self.drop_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


def drop_path_schedule(config: CrateEncoderConfig) -> list[float]:
    """Return the stochastic depth of each encoder layer: from 0 linearly to `config.drop_path_rate`, as in timm."""
    last = max(config.num_hidden_layers - 1, 1)
    return [config.drop_path_rate * index / last for index in range(config.num_hidden_layers)]


class CrateLayer(GradientCheckpointingLayer):
    """Encoder layer f: compress, then sparsify.

    z_half = z + MSSA(LN(z)),   z' = ISTA(LN(z_half))

    Stochastic depth leaves out the compression alone: ISTA has no skip connection, without it nothing would be left.

    Args:
        config: Of the model.
        drop_path_rate: Probability to leave out MSSA for an image in training.
    """

    def __init__(self, config: CrateEncoderConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mssa = CrateMSSA(config, config.num_attention_heads)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = CrateDropPath(drop_path_rate)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ista = CrateISTA(config.hidden_size, config.ista_step_size, config.ista_lambda)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        compressed, _ = self.mssa(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(compressed))
        return self.ista(*apply_norm(self.layernorm_after, hidden_states))


class CrateAlphaLayer(GradientCheckpointingLayer):
    """Encoder layer of CRATE-alpha: compress, then sparsify, each beside a skip connection; MSSA has no bias.

    z_half = z + MSSA(LN(z)),   z' = z_half + ISTA(LN(z_half))

    Without `config.ista_residual` it is z' = ISTA(LN(z_half)), and stochastic depth leaves out the compression alone.

    Args:
        config: Of the model.
        drop_path_rate: Probability to leave out a branch for an image in training.
    """

    def __init__(self, config: CrateAlphaConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mssa = CrateMSSA(config, config.num_attention_heads, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = CrateDropPath(drop_path_rate)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ista = CrateAlphaISTA(
            config.hidden_size,
            config.hidden_size * config.overcomplete_ratio,
            config.ista_step_size,
            config.ista_lambda,
            config.decoupled_dictionary,
        )
        self.residual = config.ista_residual

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        compressed, _ = self.mssa(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(compressed))
        sparsified = self.ista(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(sparsified)) if self.residual else sparsified
