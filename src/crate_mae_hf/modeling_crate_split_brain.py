"""The split-brain autoencoder on CRATE's layers: two towers, each of which predicts what the other one sees.

"Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction", Zhang, Isola, Efros, CVPR 2017. One tower
sees the lightness L of an image, the other its colour ab; nothing passes between them. Tokens are rows: the first half
of a token, d / 2 numbers, belongs to the tower of lightness, the second half to the tower of colour.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_crate_split_brain import CrateSplitBrainConfig
from .crate_heads import CrateBackboneMixin, CrateClassifierMixin, pool
from .crate_layers import CrateDropPath, CrateISTA, CrateLayer, CrateMSSA, drop_path_schedule
from .crate_patches import CratePatchGrid, interpolate_position_table, sincos_position_table
from .modeling_crate_mae import CrateMaePreTrainedModel

# Linear RGB to XYZ, rows X, Y, Z; and white, at which X, Y and Z are 1 after division (sRGB, D65).
XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
# The bins of colour: centres (a, b) on a grid of width 10, namely those that are nearest to at least one of the 256³
# colours of sRGB. They have no holes: a -> the smallest and the largest b.
AB_GAMUT = {
    -90: (80, 80), -80: (40, 80), -70: (20, 90), -60: (0, 90), -50: (-20, 90), -40: (-30, 90), -30: (-40, 90),
    -20: (-40, 90), -10: (-50, 90), 0: (-60, 90), 10: (-70, 80), 20: (-70, 80), 30: (-80, 80), 40: (-90, 80),
    50: (-90, 70), 60: (-100, 70), 70: (-110, 70), 80: (-110, 70), 90: (-90, 0), 100: (-70, -50),
}  # fmt: skip
AB_CENTRES = tuple((a, b) for a, (low, high) in AB_GAMUT.items() for b in range(low, high + 1, 10))
# The bins of lightness: 50 of width 2.
NUM_L_BINS = 50
L_CENTRES = tuple((2 * index + 1,) for index in range(NUM_L_BINS))
# The towers take, and regressions give, Lab in units of 50 around a mid grey.
LAB_MEAN = (50.0, 0.0, 0.0)
LAB_SCALE = 50.0
# "Annealed mean" of predicted bins: Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016.
TEMPERATURE = 0.38


def rgb_to_lab(pixel_values: torch.Tensor) -> torch.Tensor:
    r"""Turn red, green and blue into lightness L and colour a, b of CIE Lab, by pixel.

        c = ((v + 0.055) / 1.055)^2.4 if v > 0.04045 else v / 12.92,   (X, Y, Z) = M c / white
        f(t) = t^(1/3) if t > 0.008856 else 7.787 t + 16 / 116
        L = 116 f(Y) - 16,   a = 500 (f(X) - f(Y)),   b = 200 (f(Y) - f(Z))

    Args:
        pixel_values: sRGB in [0, 1], `(..., 3, height, width)`.

    Returns:
        L in [0, 100] and a, b in about [-110, 100], of the same shape; in float32 at least.
    """
    rgb = pixel_values.to(torch.promote_types(pixel_values.dtype, torch.float32))
    # `where` computes both branches: clamped, none has an infinite gradient.
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    # Sums of products rather than a matrix product, which autocast would do in half precision.
    matrix = torch.tensor(XYZ_FROM_RGB, dtype=rgb.dtype, device=rgb.device)
    matrix = matrix / torch.tensor(WHITE, dtype=rgb.dtype, device=rgb.device).unsqueeze(1)
    xyz = (matrix[:, :, None, None] * linear.unsqueeze(-4)).sum(dim=-3)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(dim=-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lightness_bins(lightness: torch.Tensor) -> torch.Tensor:
    """Return the bin of each lightness L, `min(floor(L / 2), 49)`, of the same shape."""
    return (lightness / 2).floor().clamp(0, NUM_L_BINS - 1).long()


def color_bins(ab: torch.Tensor) -> torch.Tensor:
    """Return the bin of each colour, that of the nearest of `AB_CENTRES`: `(..., 2)` to `(...)`."""
    centres = torch.tensor(AB_CENTRES, dtype=ab.dtype, device=ab.device)
    return ((ab[..., :1] - centres[:, 0]) ** 2 + (ab[..., 1:] - centres[:, 1]) ** 2).argmin(dim=-1)


@dataclass
class CrateSplitBrainForPreTrainingOutput(ModelOutput):
    """Output of [`CrateSplitBrainForPreTraining`]; T targets lie on a grid, row by row.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned unless `return_loss=False`):
            Sum of the two following.
        loss_ab (`torch.FloatTensor` of shape `(1,)`, *optional*, returned unless `return_loss=False`):
            Mean error of the colours that are predicted from lightness.
        loss_l (`torch.FloatTensor` of shape `(1,)`, *optional*, returned unless `return_loss=False`):
            Mean error of the lightness that is predicted from colour.
        logits_ab (`torch.FloatTensor` of shape `(batch_size, T, 261)`):
            Logits of the bins of colour; or, by regression, predicted a and b, `(batch_size, T, 2)`.
        logits_l (`torch.FloatTensor` of shape `(batch_size, T, 50)`):
            Logits of the bins of lightness; or, by regression, predicted L, `(batch_size, T, 1)`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            The embeddings and the output of each layer, both towers side by side, `(batch_size, num_patches + 1,
            hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True` and eager attention):
            The attention maps, `(batch_size, num_heads, num_patches + 1, num_patches + 1)`; the first half of the heads
            is the tower of lightness's.
    """

    loss: torch.Tensor | None = None
    loss_ab: torch.Tensor | None = None
    loss_l: torch.Tensor | None = None
    logits_ab: torch.Tensor | None = None
    logits_l: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class CrateSideBySide(nn.Module):
    """A layer of each tower: the first half of every token goes through one, the second half through the other.

    Args:
        lightness: Of the tower of lightness.
        color: Of the tower of colour.
    """

    def __init__(self, lightness: nn.Module, color: nn.Module):
        super().__init__()
        self.lightness = lightness
        self.color = color

    def forward(self, hidden_states: torch.Tensor, *args: Any) -> torch.Tensor:
        """Map `(..., d)` to the same shape."""
        lightness, color = hidden_states.chunk(2, dim=-1)
        return torch.cat([self.lightness(lightness, *args), self.color(color, *args)], dim=-1)


class CrateSplitBrainMSSA(CrateMSSA):
    """MSSA of both towers: half of the subspaces are in one, half in the other, and so are the output projections."""

    def __init__(self, config: CrateSplitBrainConfig):
        super().__init__(config, config.num_attention_heads)
        width = config.hidden_size // 2
        bases = [nn.Linear(width, width, bias=False) for _ in range(2)]
        self.add_module("subspace_proj", CrateSideBySide(*bases))
        if config.num_attention_heads == 2:  # one head of a tower's full width, which has no O
            self.add_module("o_proj", nn.Identity())
            return
        outputs = [nn.Linear(width, width) for _ in range(2)]
        for linear in outputs:
            cast(Any, linear).is_mssa_output = True
        self.add_module("o_proj", CrateSideBySide(*outputs))


class CrateSplitBrainLayer(CrateLayer):
    """Encoder layer of both towers: [`CrateLayer`] with every part of it side by side."""

    def __init__(self, config: CrateSplitBrainConfig, drop_path_rate: float = 0.0):
        super().__init__(config, drop_path_rate)
        width, eps = config.hidden_size // 2, config.layer_norm_eps
        for name in ("layernorm_before", "layernorm_after"):
            self.add_module(name, CrateSideBySide(nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)))
        self.mssa = CrateSplitBrainMSSA(config)
        self.add_module("drop_path", CrateSideBySide(CrateDropPath(drop_path_rate), CrateDropPath(drop_path_rate)))
        steps = [CrateISTA(width, config.ista_step_size, config.ista_lambda) for _ in range(2)]
        self.add_module("ista", CrateSideBySide(*steps))


class CrateSplitBrainPatchEmbeddings(CratePatchGrid):
    """Project lightness and colour of each patch to a token: `(batch_size, 3, height, width)` to `(batch_size, L, d)`.

    z = [W_1 (Lab_1 - 50) / 50 + b_1,  W_2 Lab_2,3 / 50 + b_2]
    """

    def __init__(self, config: CrateSplitBrainConfig):
        super().__init__(config)
        width, patch_size = config.hidden_size // 2, self.patch_size
        self.lightness = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size)
        self.color = nn.Conv2d(2, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        self.check(pixel_values, interpolate_pos_encoding)
        lab = rgb_to_lab(pixel_values)
        mean = torch.tensor(LAB_MEAN, dtype=lab.dtype, device=lab.device)
        lab = ((lab - mean[:, None, None]) / LAB_SCALE).to(self.lightness.weight.dtype)
        tokens = torch.cat([self.lightness(lab[:, :1]), self.color(lab[:, 1:])], dim=1)
        return tokens.flatten(2).transpose(1, 2)


class CrateSplitBrainEmbeddings(nn.Module):
    """Patch embeddings with the cls tokens in front, and the same fixed positions added to both towers."""

    def __init__(self, config: CrateSplitBrainConfig):
        super().__init__()
        self.width = config.hidden_size // 2
        self.grid_size = config.grid_size
        self.patch_embeddings = CrateSplitBrainPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings: torch.Tensor
        self.register_buffer("position_embeddings", sincos_position_table(self.width, self.grid_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        embeddings = self.patch_embeddings(pixel_values, interpolate_pos_encoding)
        cls_token = self.cls_token.expand(embeddings.shape[0], -1, -1)  # `len` would export one batch size
        embeddings = torch.cat([cls_token, embeddings], dim=1)
        grid_size = self.patch_embeddings.grid_size(pixel_values)
        positions = interpolate_position_table(self.position_embeddings, self.grid_size, grid_size)
        return self.dropout((embeddings + positions.repeat(1, 1, 2)).to(embeddings.dtype))


class CrateSplitBrainPreTrainedModel(CrateMaePreTrainedModel):
    """Initialisation, loading and saving, shared by the split-brain models; fresh weights are CRATE-MAE's."""

    config: CrateSplitBrainConfig  # type: ignore[assignment]
    base_model_prefix = "crate_split_brain"
    _no_split_modules = ["CrateSplitBrainEmbeddings", "CrateSplitBrainLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CrateSplitBrainEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.copy_(module.position_embeddings, sincos_position_table(module.width, module.grid_size))
        else:
            super()._init_weights(module)


class CrateSplitBrainModel(CrateSplitBrainPreTrainedModel):
    """Both encoders, with final layer norms: features of lightness and features of colour, side by side."""

    _keys_to_ignore_on_load_unexpected = [r"^color_head\.", r"^lightness_head\.", r"^classifier\."]

    def __init__(self, config: CrateSplitBrainConfig):
        super().__init__(config)
        width, eps = config.hidden_size // 2, config.final_layer_norm_eps
        self.embeddings = CrateSplitBrainEmbeddings(config)
        self.layers = nn.ModuleList([CrateSplitBrainLayer(config, rate) for rate in drop_path_schedule(config)])
        self.layernorm = CrateSideBySide(nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Red, green and blue in [0, 1], not normalised, as [`CrateMaeImageProcessor.from_config`] prepares them.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(batch_size, num_patches + 1, hidden_size)`, cls token
            first, and `pooler_output` `(batch_size, hidden_size)`, see `config.pooling`. The first half of a token is
            of lightness, the second half of colour.

        Raises:
            ValueError: If channels or image size do not fit the model.

        Example:

        ```python
        >>> import torch
        >>> from crate_mae_hf import CrateSplitBrainConfig, CrateSplitBrainModel

        >>> model = CrateSplitBrainModel(CrateSplitBrainConfig.from_size("tiny", num_hidden_layers=2)).eval()
        >>> tokens = model(pixel_values=torch.rand(1, 3, 224, 224)).last_hidden_state
        >>> lightness, color = tokens.chunk(2, dim=-1)
        >>> list(lightness.shape), list(color.shape)
        ([1, 197, 192], [1, 197, 192])
        ```
        """
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        pooled = pool(hidden_states, self.config.pooling)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class CrateSplitBrainForPreTraining(CrateSplitBrainPreTrainedModel):
    r"""The split-brain autoencoder: colour is predicted from lightness, and lightness from colour.

        loss = mean over targets of CE(F_1(L), bin of ab) + mean over targets of CE(F_2(ab), bin of L)

    or, with `config.prediction = "regression"`, half of the squared error of (a, b) and of L in place of the cross
    entropies CE. Targets are the means of Lab over the parts of a patch, `config.target_grid_size` along each side.
    The paper has sums in place of the means over targets.
    """

    # The loss is a mean over the batch: Trainer has to divide it by the accumulation steps itself.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: CrateSplitBrainConfig):
        super().__init__(config)
        num_ab, num_l = (len(AB_CENTRES), NUM_L_BINS) if config.prediction == "classification" else (2, 1)
        width, num_parts = config.hidden_size // 2, config.target_grid_size**2
        self.crate_split_brain = CrateSplitBrainModel(config)
        self.color_head = nn.Linear(width, num_parts * num_ab)  # on the tower of lightness
        self.lightness_head = nn.Linear(width, num_parts * num_l)  # on the tower of colour
        self.post_init()

    def lab_targets(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what is predicted: the mean of Lab over each part of each patch.

        Args:
            pixel_values: Images of shape `(batch_size, 3, height, width)` that fit the model.

        Returns:
            Lab of shape `(batch_size, 3, rows, columns)`, on the grid of targets.
        """
        height, width = self.crate_split_brain.embeddings.patch_embeddings.patch_size
        part_size = (height // self.config.target_grid_size, width // self.config.target_grid_size)
        return nn.functional.avg_pool2d(rgb_to_lab(pixel_values), part_size)

    def errors(
        self, targets: torch.Tensor, logits_ab: torch.Tensor, logits_l: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the error of the colour and of the lightness of each target, both `(batch_size, T)`.

        Args:
            targets: As `lab_targets` returns them.
            logits_ab: See [`CrateSplitBrainForPreTrainingOutput`].
            logits_l: See there.
        """
        lightness, ab = targets.flatten(2).transpose(1, 2).split((1, 2), dim=-1)
        dtype = targets.dtype  # float32 at least
        logits_ab, logits_l = logits_ab.to(dtype), logits_l.to(dtype)
        if self.config.prediction == "regression":
            return (logits_ab - ab).square().sum(-1) / 2, (logits_l - lightness).square().sum(-1) / 2
        cross_entropy = partial(nn.functional.cross_entropy, reduction="none")
        return (
            cross_entropy(logits_ab.transpose(1, 2), color_bins(ab)),
            cross_entropy(logits_l.transpose(1, 2), lightness_bins(lightness.squeeze(-1))),
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrateSplitBrainForPreTrainingOutput:
        r"""Predict the colour of every patch from lightness, and its lightness from colour.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Red, green and blue in [0, 1], not normalised, as [`CrateMaeImageProcessor.from_config`] prepares them.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the positions, for images of another size than the model was made for.
            return_loss (`bool`, *optional*, defaults to `True`):
                Whether to compute the losses.

        Returns:
            [`CrateSplitBrainForPreTrainingOutput`]

        Raises:
            ValueError: If channels or image size do not fit the model.

        Example:

        ```python
        >>> import torch
        >>> from crate_mae_hf import CrateSplitBrainConfig, CrateSplitBrainForPreTraining

        >>> config = CrateSplitBrainConfig.from_size("tiny", num_hidden_layers=2)
        >>> outputs = CrateSplitBrainForPreTraining(config).eval()(pixel_values=torch.rand(1, 3, 224, 224))
        >>> list(outputs.logits_ab.shape), list(outputs.logits_l.shape)
        ([1, 196, 261], [1, 196, 50])
        ```
        """
        outputs: BaseModelOutputWithPooling = self.crate_split_brain(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        grid_size = self.crate_split_brain.embeddings.patch_embeddings.grid_size(pixel_values)
        lightness, color = cast(torch.Tensor, outputs.last_hidden_state)[:, 1:].chunk(2, dim=-1)
        logits_ab = self._order_targets(self.color_head(lightness), grid_size)
        logits_l = self._order_targets(self.lightness_head(color), grid_size)
        if self.config.prediction == "regression":
            logits_ab, logits_l = logits_ab * LAB_SCALE, logits_l * LAB_SCALE + LAB_MEAN[0]
        loss, loss_ab, loss_l = None, None, None
        if return_loss:
            errors = self.errors(self.lab_targets(pixel_values), logits_ab, logits_l)
            loss_ab, loss_l = (error.mean() for error in errors)
            loss = loss_ab + loss_l
        return CrateSplitBrainForPreTrainingOutput(
            loss=loss,
            loss_ab=loss_ab,
            loss_l=loss_l,
            logits_ab=logits_ab,
            logits_l=logits_l,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _order_targets(self, values: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Bring predictions by patch, `(B, L, g g n)`, to the order of the grid of targets, `(B, T, n)`."""
        g = self.config.target_grid_size
        parts = values.unflatten(2, (g, g, -1)).unflatten(1, grid_size)
        return parts.transpose(2, 3).flatten(1, 4)  # (B, i, j, p, q, n) -> (B, i p j q, n)

    def predict_lab(
        self, pixel_values: torch.Tensor, temperature: float = TEMPERATURE, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        r"""Predict colour from lightness and lightness from colour, each as one value per target.

            x = sum_i p_i^(1/T) c_i / sum_i p_i^(1/T)

        c_i are the centres of the bins, p_i their probabilities: the mean at T = 1, the likeliest bin for T -> 0.

        Args:
            pixel_values: Images of shape `(batch_size, 3, height, width)`, as `forward` takes them.
            temperature: Temperature T, positive; a regression has none.
            interpolate_pos_encoding: See `forward`.

        Returns:
            Lab of shape `(batch_size, 3, rows, columns)`, on the grid of targets.

        Raises:
            ValueError: If the temperature is not positive, or the images do not fit the model.
        """
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        outputs = self(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_loss=False)
        lightness, ab = outputs.logits_l.float(), outputs.logits_ab.float()
        if self.config.prediction == "classification":
            l_centres, ab_centres = (torch.tensor(c, device=ab.device).float() for c in (L_CENTRES, AB_CENTRES))
            lightness = (lightness / temperature).softmax(dim=-1) @ l_centres
            ab = (ab / temperature).softmax(dim=-1) @ ab_centres
        rows, columns = self.crate_split_brain.embeddings.patch_embeddings.grid_size(pixel_values)
        g = self.config.target_grid_size
        return torch.cat([lightness, ab], dim=-1).transpose(1, 2).unflatten(2, (rows * g, columns * g))


class CrateSplitBrainForImageClassification(CrateClassifierMixin, CrateSplitBrainPreTrainedModel):
    """Both encoders with a linear classifier on the mean of the patch tokens, or on the cls token."""

    _keys_to_ignore_on_load_unexpected = [r"^color_head\.", r"^lightness_head\."]

    def __init__(self, config: CrateSplitBrainConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.crate_split_brain = CrateSplitBrainModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()


class CrateSplitBrainBackbone(CrateBackboneMixin, CrateSplitBrainModel):
    """Both encoders as a backbone for detection and segmentation: feature maps of chosen layers."""


__all__ = [
    "CrateSplitBrainBackbone",
    "CrateSplitBrainForImageClassification",
    "CrateSplitBrainForPreTraining",
    "CrateSplitBrainForPreTrainingOutput",
    "CrateSplitBrainModel",
    "CrateSplitBrainPreTrainedModel",
    "rgb_to_lab",
]
