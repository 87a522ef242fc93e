"""CRATE-MAE, the white-box masked autoencoder.

"Masked Completion via Structured Diffusion with White-Box Transformers", Pai, Buchanan, Wu, Yu, Ma, ICLR 2024.
Formulas follow the official code, github.com/Ma-Lab-Berkeley/CRATE, with tokens as rows: d is the width of a token, K
the number of heads, N = L + 1 the cls token and L patches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_crate import CrateEncoderConfig, to_pair
from .configuration_crate_mae import CrateMaeConfig


@dataclass
class CrateMaeForPreTrainingOutput(ModelOutput):
    """Output of [`CrateMaeForPreTraining`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned unless `return_loss=False`):
            Mean squared error over the pixels of the masked patches.
        logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`,
            *optional*, returned unless `return_logits=False`):
            Predicted pixels of every patch; see [`CrateMaeForPreTraining.unpatchify`].
        mask (`torch.FloatTensor` of shape `(batch_size, num_patches)`):
            1 where a patch was masked, 0 where it was visible.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`):
            Rank of each patch in the order "visible first", as ViTMAE has it.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            The encoder's embeddings and the output of each encoder layer, `(batch_size, num_patches + 1, hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True` and eager attention):
            The encoder's attention maps, `(batch_size, num_heads, num_patches + 1, num_patches + 1)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def sincos_position_table(hidden_size: int, grid_size: tuple[int, int]) -> torch.Tensor:
    r"""Fixed two-dimensional sine-cosine positions of a grid of patches, with a zero row for the cls token.

        row of patch (i, j) = [sin(j w), cos(j w), sin(i w), cos(i w)],   w_k = 10000^(-4 k / d),   k = 0 ... d/4 - 1

    The column comes first, as in the code of MAE (github.com/facebookresearch/mae), from which CRATE-MAE has its table.

    Args:
        hidden_size: Width d of a token, a multiple of 4.
        grid_size: Number of patches as (rows, columns).

    Returns:
        Table of shape `(1, rows * columns + 1, hidden_size)`, float32.
    """
    num_frequencies = hidden_size // 4
    frequencies = 10000.0 ** -(torch.arange(num_frequencies, dtype=torch.float64) / num_frequencies)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid_size), indexing="ij")
    angles = [torch.outer(positions.flatten(), frequencies) for positions in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros_like(table[:1]), table]).float().unsqueeze(0)


def interpolate_position_table(
    table: torch.Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int]
) -> torch.Tensor:
    """Return a table of positions for another grid of patches, by bicubic interpolation in float32.

    Args:
        table: Table of shape `(1, rows * columns + 1, hidden_size)`; the row of the cls token stays as it is.
        grid_size: Number of patches of the table as (rows, columns).
        new_grid_size: The same of the table to return.
    """
    if new_grid_size == grid_size:
        return table
    patches = table[:, 1:].float().unflatten(1, grid_size).permute(0, 3, 1, 2)  # (1, d, rows, columns)
    patches = nn.functional.interpolate(patches, size=new_grid_size, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class CrateMaePatchGrid(nn.Module):
    """The patches of an image: whether it can be cut into them, and how."""

    def __init__(self, config: CrateEncoderConfig):
        super().__init__()
        self.image_size = to_pair(config.image_size)
        self.patch_size = to_pair(config.patch_size)
        self.num_channels = config.num_channels

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patch_height, patch_width = self.patch_size
        patches = pixel_values.unflatten(3, (-1, patch_width)).unflatten(2, (-1, patch_height))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, C, i, p, j, q) -> (B, i j, p q C)

    def check(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {self.num_channels}, height, width) for a model with "
                f"`num_channels={self.num_channels}`, got {tuple(pixel_values.shape)}."
            )
        size, patch_size = tuple(pixel_values.shape[2:]), self.patch_size
        if interpolate_pos_encoding:
            if any(length % patch for length, patch in zip(size, patch_size, strict=True)):
                raise ValueError(
                    f"`pixel_values` must have a height and width divisible by the patch size {patch_size}, got {size}."
                )
        elif size != self.image_size:
            raise ValueError(
                f"`pixel_values` have height and width {size}, the model was made for {self.image_size}: resize the "
                "images or pass `interpolate_pos_encoding=True`."
            )


class CrateMaePatchEmbeddings(CrateMaePatchGrid):
    """Project each patch to a token: `(batch_size, num_channels, height, width)` to `(batch_size, L, d)`."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        self.check(pixel_values, interpolate_pos_encoding)
        return self.projection(pixel_values.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)


class CrateMaeEmbeddings(nn.Module):
    """Patch embeddings with mask tokens in place, the cls token in front, and positions added once.

    The positions are fixed; they are a persistent buffer, so that they travel with the checkpoint and never train.
    """

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.grid_size = config.grid_size
        self.patch_embeddings = CrateMaePatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings: torch.Tensor
        self.register_buffer("position_embeddings", sincos_position_table(config.hidden_size, self.grid_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolate_pos_encoding(self, height: int, width: int) -> torch.Tensor:
        """Return the positions for an image of (height, width) pixels."""
        patch_height, patch_width = self.patch_embeddings.patch_size
        grid_size = (height // patch_height, width // patch_width)
        return interpolate_position_table(self.position_embeddings, self.grid_size, grid_size)

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        embeddings = self.patch_embeddings(pixel_values, interpolate_pos_encoding)
        batch_size, num_patches, _ = embeddings.shape
        if bool_masked_pos is None:
            # Nothing is masked, yet the mask token stays in the graph: DistributedDataParallel wants every gradient.
            bool_masked_pos = embeddings.new_zeros(batch_size, num_patches, dtype=torch.bool)
        elif bool_masked_pos.dtype != torch.bool or bool_masked_pos.shape != (batch_size, num_patches):
            raise ValueError(
                f"`bool_masked_pos` must be a boolean tensor of shape {(batch_size, num_patches)}, True where a patch "
                f"is masked; got {bool_masked_pos.dtype} of shape {tuple(bool_masked_pos.shape)}."
            )
        embeddings = torch.where(bool_masked_pos.unsqueeze(-1), self.mask_token, embeddings)
        embeddings = torch.cat([self.cls_token.expand(batch_size, -1, -1), embeddings], dim=1)
        positions = self.interpolate_pos_encoding(*pixel_values.shape[2:])
        return self.dropout((embeddings + positions).to(embeddings.dtype))


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
    """Return softmax(query keyᵀ * scaling + mask) value as `(batch_size, N, num_heads, head_dim)`, and the softmax."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    attention_probs = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_probs = nn.functional.dropout(attention_probs, p=dropout, training=module.training)
    return (attention_probs @ value).transpose(1, 2).contiguous(), attention_probs


class CrateMaeSubspaceAttention(nn.Module):
    r"""Multi-head subspace self-attention (MSSA): one step that compresses tokens against K learned subspaces.

        W = Z Uᵀ,   head_k = softmax(W_k W_kᵀ / sqrt(d / K)) W_k,   MSSA(Z) = [head_1, ..., head_K] Oᵀ + b

    The one projection U (`subspace_proj`, without bias) is query, key and value at once; U_k is a basis of subspace k.
    `out_proj` holds O and b, and is left out where there is one head of full width, as in the official code.

    Args:
        config: Gives width, dropout and the attention implementation.
        num_heads: Number K of subspaces; the encoder's and the decoder's may differ.
    """

    def __init__(self, config: CrateEncoderConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.subspace_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size) if num_heads > 1 else nn.Identity()

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map `(batch_size, N, d)` to the same shape, and to the attention maps where the implementation gives them."""
        codes = self.subspace_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, K, N, d / K)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        outputs, attention_probs = attention_interface(
            self,
            codes,
            codes,
            codes,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(outputs.flatten(2)), attention_probs


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


NormInputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]  # hidden_states, weight, bias, eps


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


def inputs_of_norm(norm: nn.LayerNorm, hidden_states: torch.Tensor) -> NormInputs | None:
    """Return what `torch.nn.functional.layer_norm` takes to compute `norm(hidden_states)` again in a backward.

    None where it may give something else: for a norm that is not plain, or has hooks, which may change what they are
    shown. Compilers decide for themselves what to keep.
    """
    if (
        type(norm) is nn.LayerNorm
        and type(norm.weight) is nn.Parameter  # no shard, nothing quantized or traced by a function transform
        and not (norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm))
        and not nn.modules.module._has_any_global_hook()
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    ):
        return hidden_states, norm.weight, norm.bias, norm.eps
    return None


def normed_product(normed: torch.Tensor, matrix: torch.Tensor, inputs: NormInputs | None) -> torch.Tensor:
    """Return `normed @ matrix`, without keeping `normed` where its norm's inputs are given."""
    return normed @ matrix if inputs is None else NormedProduct.apply(normed, matrix, *inputs)


# Folded dictionaries for inference: dictionary -> (a copy of it, eta, M). An entry goes when its dictionary does, and
# belongs to no module: copies and checkpoints never hold it.
_folded_dictionaries = WeakTensorKeyDictionary()


class CrateMaeISTA(nn.Module):
    r"""One proximal gradient (ISTA) step towards a sparse, non-negative code of the tokens.

        Z' = ReLU(Z + eta (Z - Z Dᵀ) D - eta lambda)
           = ReLU(Z + Z M - eta lambda),   M = eta (D - Dᵀ D)

    D (`dictionary`, d x d) is the learned dictionary: the step descends 1/2 |Z - A Dᵀ|² + lambda |A|_1 over A >= 0 from
    A = Z. There is no skip connection around it, and the result is never negative. The second form takes one product
    over the tokens instead of two, and is used where that is worth forming M, d x d; the identity stays outside M, so
    that low precision rounds the step, not the tokens.

    Args:
        hidden_size: Width d of a token.
        step_size: Step size eta.
        sparsity: Sparsity weight lambda.
    """

    def __init__(self, hidden_size: int, step_size: float, sparsity: float):
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.step_size = step_size
        self.threshold = step_size * sparsity

    def forward(self, hidden_states: torch.Tensor, norm_inputs: NormInputs | None = None) -> torch.Tensor:
        """Map `(..., d)` to the same shape; with the inputs of the norm that gave the tokens, training keeps less."""
        if self.keeps_folded():
            step = hidden_states @ self.kept_folded_dictionary()
        elif self.folds(hidden_states):
            folded = FoldDictionary.apply(self.dictionary, self.step_size)
            norm_inputs = None if self._forward_pre_hooks else norm_inputs  # a hook may have changed the tokens
            step = normed_product(hidden_states, folded, norm_inputs)
        else:
            residual = hidden_states - nn.functional.linear(hidden_states, self.dictionary)
            step = self.step_size * (residual @ self.dictionary)
        # In place after the first sum, whose memory is nobody else's: these passes wait for memory, not for arithmetic.
        return (hidden_states + step).sub_(self.threshold).relu_()

    def folds(self, hidden_states: torch.Tensor) -> bool:
        """Whether forming M pays: with the backward, T tokens take 3 T + 2 d rows of products instead of 6 T."""
        if torch.compiler.is_exporting():
            # A graph for any batch size. ONNX runtimes fold constants when they load it, other programs at every call.
            return torch.onnx.is_in_onnx_export()
        return 3 * hidden_states.shape[:-1].numel() > 2 * hidden_states.shape[-1]

    def keeps_folded(self) -> bool:
        """Whether M may be kept: in inference, where comparing the weights does not make a device wait.

        Weights that are no plain parameter are shards, quantized, or traced by a function transform.
        """
        return not (
            self.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or type(self.dictionary) is not nn.Parameter
            or self.dictionary.device.type != "cpu"
        )

    def kept_folded_dictionary(self) -> torch.Tensor:
        """Return M, formed anew when the dictionary has changed, by whatever means."""
        dictionary = self.dictionary.detach()
        if (entry := _folded_dictionaries.get(self.dictionary)) is not None:
            copy, step_size, folded = entry
            if copy.dtype == dictionary.dtype and step_size == self.step_size and torch.equal(copy, dictionary):
                return folded
        with torch.autocast("cpu", enabled=False):  # M has to serve outside autocast too
            folded = FoldDictionary.apply(dictionary, self.step_size)
        _folded_dictionaries[self.dictionary] = (dictionary.clone(), self.step_size, folded)
        return folded

    def extra_repr(self) -> str:
        return f"step_size={self.step_size}, threshold={self.threshold}"


class CrateMaeDropPath(nn.Module):
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


class CrateMaeLayer(GradientCheckpointingLayer):
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
        self.mssa = CrateMaeSubspaceAttention(config, config.num_attention_heads)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = CrateMaeDropPath(drop_path_rate)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ista = CrateMaeISTA(config.hidden_size, config.ista_step_size, config.ista_lambda)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        compressed, _ = self.mssa(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(compressed))
        normed = self.layernorm_after(hidden_states)
        return self.ista(normed, norm_inputs=inputs_of_norm(self.layernorm_after, hidden_states))


class CrateMaeDecoderLayer(GradientCheckpointingLayer):
    """Decoder layer g, the approximate inverse of an encoder layer: back from the sparse code, then decompress.

    y_half = LN(y) Dᵀ,   y' = y_half - MSSA(LN(y_half))
    """

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dictionary = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mssa = CrateMaeSubspaceAttention(config, cast(int, config.decoder_num_attention_heads))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        normed = self.layernorm_before(hidden_states)
        inputs = inputs_of_norm(self.layernorm_before, hidden_states)
        hidden_states = normed_product(normed, self.dictionary.T, inputs)
        compressed, _ = self.mssa(self.layernorm_after(hidden_states), **kwargs)
        return hidden_states - self.dropout(compressed)


class CrateMaeDecoder(nn.Module):
    """Decoder layers, final layer norm and projection to pixels: `(batch_size, N, d)` to `(batch_size, L, pixels)`.

    With a mask the pixels of the masked patches alone, over all images: `(number of masked patches, pixels)`.
    """

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        patch_height, patch_width = to_pair(config.patch_size)
        num_layers = cast(int, config.decoder_num_hidden_layers)
        self.layers = nn.ModuleList([CrateMaeDecoderLayer(config) for _ in range(num_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)
        self.prediction_head = nn.Linear(config.hidden_size, patch_height * patch_width * config.num_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        if bool_masked_pos is None:
            return self.prediction_head(self.layernorm(hidden_states)[:, 1:])
        positions = nn.functional.pad(bool_masked_pos, (1, 0)).flatten().nonzero().squeeze(1)  # behind the cls token
        return self.prediction_head(self.layernorm(hidden_states.flatten(0, 1).index_select(0, positions)))


class CrateEncoderPreTrainedModel(PreTrainedModel):
    """What Transformers has to know of any model with these encoder layers."""

    config: CrateEncoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": CrateMaeLayer, "attentions": CrateMaeSubspaceAttention}
    _input_embed_layer = "patch_embeddings"


class CrateMaePreTrainedModel(CrateEncoderPreTrainedModel):
    """Initialisation, loading and saving, shared by the CRATE-MAE models."""

    config: CrateMaeConfig
    base_model_prefix = "crate_mae"
    _no_split_modules = ["CrateMaeEmbeddings", "CrateMaeLayer", "CrateMaeDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # Xavier over the flattened weight (d, pixels of a patch), as for a linear layer. The bound is written out
            # because a view of a loaded weight would lose the mark that it is loaded.
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(cast(torch.Tensor, module.bias))
        elif isinstance(module, (CrateMaeISTA, CrateMaeDecoderLayer)):
            init.kaiming_uniform_(module.dictionary)
        elif isinstance(module, CrateMaeEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.normal_(module.mask_token, std=self.config.initializer_range)
            table = sincos_position_table(module.hidden_size, module.grid_size)
            init.copy_(module.position_embeddings, table)
        else:
            super()._init_weights(module)


class CrateMaeModel(CrateMaePreTrainedModel):
    """The encoder: image features with a final layer norm. Nothing is masked unless `bool_masked_pos` says so."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^classifier\."]

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.embeddings = CrateMaeEmbeddings(config)
        self.layers = nn.ModuleList([CrateMaeLayer(config, rate) for rate in drop_path_schedule(config)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                True where a patch is masked, row by row over the patch grid. Masked patches keep their place as mask
                tokens, so the number of tokens never changes.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(batch_size, num_patches + 1, hidden_size)`, cls token
            first, and `pooler_output` `(batch_size, hidden_size)`, the cls token.

        Raises:
            ValueError: If channels, image size or mask do not fit the model.

        Example:

        ```python
        >>> import torch
        >>> from crate_mae_hf import CrateMaeConfig, CrateMaeModel

        >>> model = CrateMaeModel(CrateMaeConfig.from_size("tiny", num_hidden_layers=2)).eval()
        >>> outputs = model(pixel_values=torch.zeros(1, 3, 224, 224))
        >>> list(outputs.last_hidden_state.shape)
        [1, 197, 384]
        ```
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class CrateMaeForPreTraining(CrateMaePreTrainedModel):
    """The masked autoencoder: encoder, decoder and reconstruction loss."""

    # The loss is a mean over the batch: Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.crate_mae = CrateMaeModel(config)
        self.decoder = CrateMaeDecoder(config)
        self.post_init()

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Cut images into patches.

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)`.

        Returns:
            Patches of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`, row by row over the
            grid; within a patch the order is row, column, channel.

        Raises:
            ValueError: If the channels or the image size do not fit the model.
        """
        patch_embeddings = self.crate_mae.embeddings.patch_embeddings
        patch_embeddings.check(pixel_values, interpolate_pos_encoding=True)
        return patch_embeddings.patchify(pixel_values)

    def unpatchify(self, patches: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """Put patches together again: the inverse of `patchify`.

        Args:
            patches: Patches of shape `(batch_size, num_patches, patch_height * patch_width * num_channels)`.
            image_size: Image (height, width); the configuration's when left out.

        Returns:
            Images of shape `(batch_size, num_channels, height, width)`.

        Raises:
            ValueError: If the patches do not fill such an image.
        """
        patch_height, patch_width = to_pair(self.config.patch_size)
        height, width = image_size if image_size is not None else to_pair(self.config.image_size)
        num_patches = height // patch_height * (width // patch_width)
        num_values = patch_height * patch_width * self.config.num_channels
        if height % patch_height or width % patch_width or patches.shape[1:] != (num_patches, num_values):
            raise ValueError(
                f"`patches` must have shape (batch_size, {num_patches}, {num_values}) for a {(height, width)} image "
                f"and patches of {(patch_height, patch_width)} pixels, got {tuple(patches.shape)}."
            )
        grid = patches.unflatten(2, (patch_height, patch_width, -1)).unflatten(1, (-1, width // patch_width))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, i, j, p, q, C) -> (B, C, i p, j q)

    def sample_mask(self, noise: torch.Tensor) -> torch.BoolTensor:
        """Mask the patches with the largest noise.

        Args:
            noise: One number a patch, `(batch_size, num_patches)`; the `int(L * (1 - mask_ratio))` smallest stay
                visible.

        Returns:
            Boolean mask of the same shape, True where a patch is masked.
        """
        num_visible = int(noise.shape[1] * (1 - self.config.mask_ratio))
        return cast(torch.BoolTensor, noise.argsort(dim=1).argsort(dim=1) >= num_visible)

    def patch_targets(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the decoder has to predict: the patches in float32.

        With `norm_pix_loss` each patch is brought to mean 0 and variance 1 over its own pixels (unbiased variance,
        + 1e-6).

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)`.

        Returns:
            Targets of the shape of `patchify`.
        """
        target = self.patchify(pixel_values.float())
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return target

    def forward_loss(self, pixel_values: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        r"""Mean squared error over the masked patches, in float32.

            loss = sum_l mask_l |x_l - y_l|² / P / sum_l mask_l

        x are the `patch_targets`, P is the number of values in a patch. Zero where nothing is masked.

        Args:
            pixel_values: Images of shape `(batch_size, num_channels, height, width)`.
            logits: Predicted patches y of shape `(batch_size, num_patches, P)`.
            mask: 1 where a patch is masked, `(batch_size, num_patches)`.
        """
        error = (logits.float() - self.patch_targets(pixel_values)).pow(2).mean(dim=-1)
        return (error * mask).sum() / mask.sum().clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        return_logits: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrateMaeForPreTrainingOutput:
        r"""Mask patches, encode, and predict the pixels of every patch.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                True where a patch is masked; images may differ in how many are. Wins over `noise`. All False
                reconstructs the whole image from itself.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
                Decides the mask by `config.mask_ratio`, see `sample_mask`; drawn uniformly when left out.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.
            return_loss (`bool`, *optional*, defaults to `True`):
                Whether to compute the loss.
            return_logits (`bool`, *optional*, defaults to `True`):
                Whether to predict every patch. Without it the loss takes the masked patches alone, to the same value.

        Returns:
            [`CrateMaeForPreTrainingOutput`]

        Raises:
            ValueError: If channels, image size, mask or noise do not fit the model, or neither loss nor logits are
                asked for.

        Example:

        ```python
        >>> import torch
        >>> from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining

        >>> model = CrateMaeForPreTraining(CrateMaeConfig.from_size("tiny", num_hidden_layers=2)).eval()
        >>> outputs = model(pixel_values=torch.zeros(1, 3, 224, 224))
        >>> int(outputs.mask.sum()), list(model.unpatchify(outputs.logits).shape)
        (147, [1, 3, 224, 224])
        ```
        """
        patch_embeddings = self.crate_mae.embeddings.patch_embeddings
        patch_embeddings.check(pixel_values, interpolate_pos_encoding)
        if not (return_loss or return_logits):
            raise ValueError("`return_loss` and `return_logits` are both False: there is nothing to compute.")
        if bool_masked_pos is None:
            (height, width), (patch_height, patch_width) = pixel_values.shape[2:], patch_embeddings.patch_size
            shape = (pixel_values.shape[0], height // patch_height * (width // patch_width))
            if noise is None:
                noise = torch.rand(shape, device=pixel_values.device)
            elif noise.shape != shape:
                raise ValueError(f"`noise` must have shape {shape}, one number a patch, got {tuple(noise.shape)}.")
            bool_masked_pos = self.sample_mask(noise)
        else:
            noise = None
        outputs: BaseModelOutputWithPooling = self.crate_mae(
            pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs
        )
        mask = bool_masked_pos.float()
        logits, loss = None, None
        if return_logits:
            logits = self.decoder(outputs.last_hidden_state, **kwargs)
            loss = self.forward_loss(pixel_values, logits, mask) if return_loss else None
        else:
            predictions = self.decoder(outputs.last_hidden_state, bool_masked_pos, **kwargs)
            error = (predictions.float() - self.patch_targets(pixel_values)[bool_masked_pos]).pow(2).mean(dim=-1)
            loss = error.sum() / max(len(error), 1)
        # Without noise, visible and masked patches keep their order; ONNX has no stable sort that would do the same.
        ranking = mask * mask.shape[1] + torch.arange(mask.shape[1], device=mask.device) if noise is None else noise
        return CrateMaeForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=mask,
            ids_restore=ranking.argsort(dim=1).argsort(dim=1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CrateMaeForImageClassification(CrateMaePreTrainedModel):
    """The encoder with a linear classifier on the mean of the patch tokens, or on the cls token (`config.pooling`)."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.crate_mae = CrateMaeModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""Classify images; nothing is masked.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Classes in `[0, config.num_labels - 1]`; with one label the loss is a regression loss, and with
                `problem_type="multi_label_classification"` labels are `(batch_size, num_labels)`.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`ImageClassifierOutput`]: `logits` of shape `(batch_size, num_labels)`, and `loss` where labels are given.

        Raises:
            ValueError: If channels or image size do not fit the model.
        """
        outputs: BaseModelOutputWithPooling = self.base_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        tokens = cast(torch.Tensor, outputs.last_hidden_state)
        logits = self.classifier(tokens[:, 0] if self.config.pooling == "cls" else tokens[:, 1:].mean(dim=1))
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CrateMaeBackbone(BackboneMixin, CrateMaeModel):
    """The encoder as a backbone for detection and segmentation: feature maps of chosen layers."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""Return the feature maps of the stages in `config.out_features`; nothing is masked.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as [`CrateMaeImageProcessor`] prepares them.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`BackboneOutput`]: `feature_maps`, one a stage, `(batch_size, hidden_size, rows, columns)`.

        Raises:
            ValueError: If channels or image size do not fit the model.
        """
        # The encoder's forward, which comes behind the mixin.
        outputs = super(BackboneMixin, self).forward(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        patch_height, patch_width = self.embeddings.patch_embeddings.patch_size
        grid_size = (pixel_values.shape[2] // patch_height, pixel_values.shape[3] // patch_width)
        feature_maps = []
        for stage, hidden_states in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage in self.out_features:
                if self.config.apply_layernorm:
                    hidden_states = self.layernorm(hidden_states)
                if self.config.reshape_hidden_states:
                    hidden_states = hidden_states[:, 1:].transpose(1, 2).unflatten(2, grid_size).contiguous()
                feature_maps.append(hidden_states)
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "CrateMaeBackbone",
    "CrateMaeForImageClassification",
    "CrateMaeForPreTraining",
    "CrateMaeForPreTrainingOutput",
    "CrateMaeModel",
    "CrateMaePreTrainedModel",
]
