"""CRATE-MAE, CRATE, ViTMAE of Transformers and, for features, any vision model, by one face.

Everything that this package knows of ViTMAE stands here. A layer of CRATE-MAE or CRATE has one projection U
(`mssa.subspace_proj`) for query and key, a ViTMAE layer has `attention.q_proj` and `attention.k_proj`. CRATE-MAE takes
`bool_masked_pos`, CRATE no mask, and ViTMAE takes noise and `config.mask_ratio`, masks always, and shuffles patches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_crate import patch_grid_size, to_pair
from .crate_patches import sincos_position_table

# Where models of Transformers have the norm of their last hidden state.
FINAL_NORMS = ("layernorm", "layer_norm", "norm", "post_layernorm")


# The fixed position tables of a ViTMAE.
POSITION_TABLES = ("position_embeddings", "decoder_pos_embed")


# Evaluation, and what hooks see of it


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Context manager: evaluation mode without gradients; on leaving, each module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def forward_hooks(hooks: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Context manager: `hook(module, arguments, output)` is called after each forward of the modules."""
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        yield


# Images


def check_pixel_values(model: PreTrainedModel, pixel_values: torch.Tensor) -> None:
    """Check that images have the model's channels and are made of whole patches.

    Raises:
        ValueError: If they do not or are not.
    """
    patch_height, patch_width = to_pair(model.config.patch_size)
    channels = model.config.num_channels
    if (
        pixel_values.ndim != 4
        or pixel_values.shape[1] != channels
        or pixel_values.shape[2] % patch_height
        or pixel_values.shape[3] % patch_width
    ):
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, {channels}, height, width), height and width divisible by "
            f"the patch size {(patch_height, patch_width)}, got {tuple(pixel_values.shape)}."
        )


def patch_grid(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    """Return the number of patches of each image as (rows, columns)."""
    return patch_grid_size((pixel_values.shape[2], pixel_values.shape[3]), model.config.patch_size)


# Tokens of any vision model


@dataclass
class LayerTokens:
    """Tokens of one layer.

    Args:
        tokens: `(batch_size, N, d)`; feature maps of convolutional networks have one token per position.
        num_prefix_tokens: Number of tokens before the patch tokens: the cls token, if any, and registers.
        normalised: Whether the model's final norm was applied.
    """

    tokens: torch.Tensor
    num_prefix_tokens: int
    normalised: bool


@contextmanager
def final_norm_calls(model: PreTrainedModel) -> Iterator[list[tuple[nn.Module, torch.Tensor, torch.Tensor]]]:
    """Context manager: a list that fills with the calls of possible final norms, as (module, input, output)."""
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def record(module: nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        calls.append((module, arguments[0], output))

    modules = [module for name in FINAL_NORMS if (module := getattr(model, name, None)) is not None]
    with forward_hooks({module: record for module in modules if not isinstance(module, nn.Identity)}):
        yield calls


def count_prefix_tokens(model: PreTrainedModel, num_tokens: int, image_size: Sequence[int]) -> int:
    """Return the number of tokens that are none of patches: those beyond the patches of an image (height, width).

    Hierarchical models merge patches, have fewer tokens, and no cls token. Models of timm say it themselves.

    Raises:
        ValueError: If the configuration does not say how large patches are.
    """
    if hasattr(model, "timm_model"):
        return getattr(model.timm_model, "num_prefix_tokens", 0)
    stride = getattr(model.config, "patch_stride", None) or getattr(model.config, "patch_size", None)
    if model.config.model_type == "dinov3_convnext":  # the pooled token before the flattened map of the last stage
        stride = 4 * 2 ** (len(model.config.hidden_sizes) - 1)
    if stride is None:
        raise ValueError(
            f"`model` {type(model).__name__} has no `patch_size` in its configuration: its patch tokens cannot be told "
            "from others."
        )
    rows, columns = patch_grid_size((image_size[0], image_size[1]), stride)
    return max(num_tokens - rows * columns, 0)


def layer_tokens(
    model: PreTrainedModel, pixel_values: torch.Tensor, layer: int = -1, norm: bool | None = None
) -> LayerTokens:
    """Run a model on whole images and return the tokens of one layer.

    Args:
        model: Any vision model of Transformers without a head. ViTMAE masks nothing and keeps the patches in order.
        pixel_values: `(batch_size, num_channels, height, width)`.
        layer: Index into the model's `hidden_states`: 0 for the embeddings, k for the output of layer k, -1 for the
            last.
        norm: Whether to apply the model's final norm; when left out, where the model has one that fits.

    Raises:
        ValueError: If there is no such layer, or `norm` is asked for and there is none.
    """
    inputs: dict[str, Any] = {}
    if layer != -1:  # all layers at once take memory
        inputs["output_hidden_states"] = True
    with ExitStack() as stack:
        if is_vit_mae(model):
            inputs |= stack.enter_context(vit_mae_mask(model, pixel_values))
        calls = stack.enter_context(final_norm_calls(model))
        outputs = model(pixel_values.to(model.device, model.dtype), **inputs)
    hidden_states = outputs.last_hidden_state
    # A norm counts only if its output is the last hidden state: some models norm the pooled token and no other.
    final_norm, before = next(((module, x) for module, x, y in calls if y is hidden_states), (None, hidden_states))
    normalised = final_norm is not None
    if layer != -1:
        states = outputs.hidden_states
        if not -len(states) <= layer < len(states):
            raise ValueError(
                f"`layer` must lie in [{-len(states)}, {len(states) - 1}] for this {type(model).__name__}, got {layer}."
            )
        if layer % len(states) != len(states) - 1:
            hidden_states = before = states[layer]
            width = getattr(final_norm, "normalized_shape", hidden_states.shape[-1:])
            normalised = final_norm is not None and tuple(width) == tuple(hidden_states.shape[-1:])
            if final_norm is not None and normalised and norm is not False:
                hidden_states = final_norm(hidden_states)
    if norm and not normalised:
        raise ValueError(
            f"`norm`: this {type(model).__name__} has no final norm over the tokens of layer {layer}; leave `norm` out "
            "to take the tokens as they are."
        )
    if norm is False:
        hidden_states, normalised = before, False
    if hidden_states.ndim == 4:
        return LayerTokens(hidden_states.flatten(2).transpose(1, 2), 0, normalised)
    num_prefix_tokens = count_prefix_tokens(model, hidden_states.shape[1], pixel_values.shape[2:])
    return LayerTokens(hidden_states, num_prefix_tokens, normalised)


# Encoders and autoencoders


def is_white_box(model: PreTrainedModel) -> bool:
    """Whether each of the model's encoder layers has one subspace projection and one dictionary, as CRATE's have.

    Those of a split-brain autoencoder have two of each, side by side.
    """
    layers = getattr(model.base_model, "layers", [None])
    return all(hasattr(getattr(layer, "ista", None), "dictionary") for layer in layers)


# The halves of a split-brain autoencoder's tokens.
TOWERS = ("lightness", "color")


def token_parts(model: PreTrainedModel) -> tuple[str, ...]:
    """Return what the two halves of a token are: the towers of a split-brain autoencoder; nothing for other models."""
    return TOWERS if model.config.model_type == "crate_split_brain" else ()


def has_decoder(model: PreTrainedModel) -> bool:
    """Whether the model reconstructs images."""
    return hasattr(model, "unpatchify")


def query_key_projections(model: PreTrainedModel, layer: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the projections that make query and key in an encoder layer; they are one in CRATE-MAE.

    Raises:
        ValueError: If there is no such layer, or the model is neither a CRATE-MAE nor a ViTMAE.
    """
    layers = cast(Any, model.base_model).layers
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"`layer` must lie in [{-len(layers)}, {len(layers) - 1}], got {layer}.")
    if is_white_box(model):
        return layers[layer].mssa.subspace_proj, layers[layer].mssa.subspace_proj
    if is_vit_mae(model):
        return layers[layer].attention.q_proj, layers[layer].attention.k_proj
    raise ValueError(f"`model` must be a CRATE-MAE, a CRATE or a ViTMAE, got {type(model).__name__}.")


def key_name(model: PreTrainedModel) -> str:
    """Return what the output of the key projection is called, for captions."""
    return "the subspace codes U LN(z)" if is_white_box(model) else "keys"


def run_encoder(
    model: PreTrainedModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
) -> ModelOutput:
    """Run the encoder, for its output and what hooks see of it; nothing is masked unless it is said, also by ViTMAE.

    Images of another size than the model's get interpolated positions.
    """
    return _run(model, model.base_model, pixel_values, bool_masked_pos)


def patch_tokens(autoencoder: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the patch embeddings with their positions, before anything is masked, `(batch_size, L, d)`.

    Args:
        autoencoder: [`CrateMaeForPreTraining`], or `ViTMAEForPreTraining` of Transformers.
        pixel_values: Images of shape `(batch_size, num_channels, height, width)`, of the model's size.
    """
    embeddings = cast(Any, autoencoder.base_model).embeddings
    return embeddings.patch_embeddings(pixel_values) + embeddings.position_embeddings[:, 1:]


def predict_patches(model: PreTrainedModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Return the predictions of all patches, `(batch_size, L, pixels)`, when those in `bool_masked_pos` are masked.

    Raises:
        ValueError: If the model has no decoder, or is a ViTMAE and the mask is not one that ViTMAE can take.
    """
    if not has_decoder(model):
        raise ValueError(
            f"`model` must be a model for pre-training, which has a decoder, got {type(model).__name__}: load it with "
            "`AutoModelForPreTraining`."
        )
    return _run(model, model, pixel_values, bool_masked_pos).logits


def _run(
    model: PreTrainedModel, part: nn.Module, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None
) -> Any:
    interpolate_pos_encoding = tuple(pixel_values.shape[2:]) != to_pair(model.config.image_size)
    pixel_values = pixel_values.to(model.device)
    if bool_masked_pos is not None:
        bool_masked_pos = bool_masked_pos.to(model.device)
    if is_vit_mae(model):
        with vit_mae_mask(model, pixel_values, bool_masked_pos) as inputs:
            return part(pixel_values, **inputs, interpolate_pos_encoding=interpolate_pos_encoding)
    if not hasattr(cast(Any, model.base_model).embeddings, "mask_token"):
        if bool_masked_pos is not None and bool_masked_pos.any():
            raise ValueError("`bool_masked_pos` must mask nothing for a CRATE, which has no mask token.")
        return part(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
    return part(pixel_values, bool_masked_pos=bool_masked_pos, interpolate_pos_encoding=interpolate_pos_encoding)


@dataclass
class MaskedPass:
    """What a masked autoencoder makes of masked images.

    Args:
        pooled: Mean of the encoder's output over the visible patches, `(batch_size, d)`.
        errors: Mean squared error of each patch, `(batch_size, L)`.
        mask: 1 where a patch was masked, `(batch_size, L)`.
    """

    pooled: torch.Tensor
    errors: torch.Tensor
    mask: torch.Tensor


def masked_pass(autoencoder: PreTrainedModel, pixel_values: torch.Tensor, noise: torch.Tensor) -> MaskedPass:
    """Mask images, encode and reconstruct them; the loss of pre-training is the mean of the errors of masked patches.

    Args:
        autoencoder: [`CrateMaeForPreTraining`], which has its mask tokens in place, or `ViTMAEForPreTraining` of
            Transformers, whose encoder sees the visible patches alone.
        pixel_values: Images of shape `(batch_size, num_channels, height, width)`, of the model's size.
        noise: One number per patch, `(batch_size, L)`; the smallest stay visible, by `config.mask_ratio`.
    """
    model: Any = autoencoder
    if is_vit_mae(autoencoder):
        encoded = model.vit(pixel_values, noise=noise)
        logits = model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
        targets = model.patchify(pixel_values)
        if model.config.norm_pix_loss:
            mean, variance = targets.mean(dim=-1, keepdim=True), targets.var(dim=-1, keepdim=True)
            targets = (targets - mean) / (variance + 1.0e-6) ** 0.5
        errors = ((logits - targets) ** 2).mean(dim=-1)
        return MaskedPass(encoded.last_hidden_state[:, 1:].mean(dim=1), errors, encoded.mask)
    bool_masked_pos = model.sample_mask(noise)
    tokens = model.crate_mae(pixel_values, bool_masked_pos).last_hidden_state
    errors = model.patch_errors(pixel_values, model.predict(model.decoder(tokens)[:, 1:]))
    visible = (~bool_masked_pos).to(tokens.dtype).unsqueeze(2)
    pooled = (tokens[:, 1:] * visible).sum(dim=1) / visible.sum(dim=1).clamp(min=1)
    return MaskedPass(pooled, errors, bool_masked_pos.float())


# ViTMAE


def is_vit_mae(model: PreTrainedModel) -> bool:
    """Whether a model is a ViTMAE of Transformers, with decoder or without."""
    return model.config.model_type == "vit_mae"


@contextmanager
def vit_mae_mask(
    model: PreTrainedModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Context manager: the arguments with which a ViTMAE masks these patches and keeps the others in order.

    Args:
        model: A ViTMAE, whose mask ratio is changed until the context is left.
        pixel_values: Images of shape `(batch_size, num_channels, height, width)`.
        bool_masked_pos: True where a patch is masked, `(batch_size, L)`; nothing when left out.

    Raises:
        ValueError: If images differ in the number of visible patches, or none is visible.
    """
    rows, columns = patch_grid(model, pixel_values)
    num_patches = rows * columns
    noise = torch.linspace(0, 0.5, num_patches, device=model.device).expand(len(pixel_values), -1)  # rising: in order
    num_visible = torch.full(noise.shape[:1], num_patches)
    if bool_masked_pos is not None:
        noise = noise + bool_masked_pos
        num_visible = (~bool_masked_pos).sum(dim=1)
    if num_visible.min() < 1 or num_visible.min() != num_visible.max():
        raise ValueError(
            "`bool_masked_pos` must leave the same number of patches visible in every image, at least one, for a "
            f"ViTMAE; got {num_visible.tolist()} visible patches."
        )
    config = cast(Any, model.base_model).embeddings.config
    mask_ratio = config.mask_ratio
    try:
        # It keeps int(L * (1 - mask_ratio)) patches; half a patch more makes that exact in floating point.
        config.mask_ratio = 1 - (int(num_visible[0]) + 0.5) / num_patches
        yield {"noise": noise}
    finally:
        config.mask_ratio = mask_ratio


def knows_positions(model: PreTrainedModel) -> bool:
    """Whether a model can tell where a patch is: not a ViTMAE that Transformers 5.23 made from a configuration."""
    return not is_vit_mae(model) or bool(cast(Any, model.base_model).embeddings.position_embeddings.any())


def freeze_positions(model: PreTrainedModel) -> None:
    """Keep the position tables of a ViTMAE from being trained; Transformers 5.23 loads them as if they should be."""
    if is_vit_mae(model):
        for name, parameter in model.named_parameters():
            if name.endswith(POSITION_TABLES):
                parameter.requires_grad_(False)


@torch.no_grad()
def fill_vit_mae(model: PreTrainedModel) -> None:
    """Initialise a ViTMAE that was made from a configuration as MAE's authors do; other models are left as they are.

    Transformers 5.23 draws all weights from normal(0.02), and leaves positions and tokens zero. By the authors' code
    (github.com/facebookresearch/mae; He et al.: "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022) linear
    layers and the patch projection, as a linear layer over flattened patches, are xavier-uniform,

        W ~ U(-a, a),   a = sqrt(6 / (fan_in + fan_out)),

    with biases zero, but for the patch projection's, which is PyTorch's; query, key and value are one layer of three
    times the width there. LayerNorms are one and zero, tokens normal(0.02), positions sines and cosines.
    """
    if not is_vit_mae(model):
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            fan_out = module.out_features * (3 if name.endswith(("q_proj", "k_proj", "v_proj")) else 1)
            bound = (6 / (module.in_features + fan_out)) ** 0.5
            module.weight.uniform_(-bound, bound)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()  # for the bias
            nn.init.xavier_uniform_(module.weight.flatten(1))  # of the same memory
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    grid_size = patch_grid_size(model.config.image_size, model.config.patch_size)
    for name, parameter in model.named_parameters():
        if name.endswith(POSITION_TABLES):
            parameter.copy_(sincos_position_table(parameter.shape[-1], grid_size))
        elif name.endswith(("cls_token", "mask_token")):
            parameter.normal_(std=0.02)
