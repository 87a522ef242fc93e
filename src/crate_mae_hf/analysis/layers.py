"""What every layer of a CRATE-MAE does to the tokens, against what it was derived to do."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..adapters import (
    check_pixel_values,
    forward_hooks,
    inference,
    is_white_box,
    patch_grid,
    predict_patches,
    run_encoder,
)
from ..crate_layers import CrateAlphaISTA, CrateISTA
from .coding_rate import (
    coding_rate,
    nonzero_share,
    orthogonality_defect,
    sparsity,
    subspace_coding_rate,
    subspace_coherence,
)

# Name -> one number per image, float64 on the CPU.
Measures = dict[str, torch.Tensor]

DESCRIPTIONS = {
    "coding_rate": "R of the layer's output [nats]",
    "coding_rate_unit": "R of the layer's output, unit-norm tokens [nats]",
    "subspace_rate_codes": "R^c of U LN(z), the codes that MSSA attends with [nats]",
    "subspace_rate_codes_unit": "the same, unit-norm tokens in each head [nats]",
    "subspace_rate_before": "R^c of U z, z the tokens that the MSSA step starts from [nats]",
    "subspace_rate_before_unit": "the same, unit-norm tokens in each head [nats]",
    "subspace_rate_after": "R^c of U z, z the tokens after the MSSA step, same U [nats]",
    "subspace_rate_after_unit": "the same, unit-norm tokens in each head [nats]",
    "sparsity": "share of exact zeros in the layer's output",
    "nonzero_share": "share of other entries, 1 - sparsity: what the papers plot",
    "mssa_energy": "|MSSA(LN(z))|² / |z|²",
    "ista_energy": "|ISTA(n) - n|² / |n|², n = LN(z_half)",
    "dictionary_energy": "|n Dᵀ - n|² / |n|², n = LN(y)",
    "residual_before": "1/2 |n - a Dᵀ|² per token, code a = n before the ISTA step",
    "residual_after": "1/2 |n - a Dᵀ|² per token, code a = ISTA(n)",
    "l1_before": "lambda |a|_1 per token, a = n",
    "l1_after": "lambda |a|_1 per token, a = ISTA(n)",
    "subspace_coherence": "mean squared cosine between the K subspaces: 0 orthogonal, 1 equal",
    "dictionary_defect": "|Dᵀ D - I|_F / sqrt(d)",
    "inversion": "mean cosine of g_l(z^(L-l+1)) and z^(L-l), each token centred: 1 if g_l inverts f_(L-l+1)",
    "inversion_in_flow": "the same of y^l, the decoder layer's output as it is, and z^(L-l)",
    "inversion_identity": "the same of z^(L-l+1) and z^(L-l): what doing nothing would score",
}
# What is measured of a CRATE-alpha besides, or means something else there: its code stays inside the layer.
ALPHA_DESCRIPTIONS = {
    "sparsity": "share of exact zeros in the code A_2",
    "ista_energy": "|A_2 D̂ᵀ|² / |z_half|²",
    "residual_before": "1/2 |n - a Dᵀ|² per token, n = LN(z_half), code a = 0 before the two ISTA steps",
    "residual_between": "1/2 |n - a Dᵀ|² per token, code a = A_1 after the first step",
    "residual_after": "1/2 |n - a Dᵀ|² per token, code a = A_2 after the second step",
    "l1_before": "lambda |a|_1 per token, a = 0",
    "l1_between": "lambda |a|_1 per token, a = A_1",
    "l1_after": "lambda |a|_1 per token, a = A_2",
    "dictionary_defect": "|D Dᵀ - I|_F / sqrt(d)",
    "output_dictionary_defect": "|D̂ D̂ᵀ - I|_F / sqrt(d)",
    "dictionary_agreement": "mean cosine between an atom of D and that of D̂: 1 if one dictionary would do",
    "step_bound": "eta times the largest eigenvalue of D Dᵀ: up to 1 both steps descend, beyond 2 they may diverge",
}


@dataclass
class LayerReport:
    """Measurements of each layer and image.

    Args:
        encoder: Name of a measure (see `descriptions`) -> `(num_layers, num_images)`, float64.
        decoder: The same for the decoder's layers; empty for a model without decoder. The inversion measures are there
            where the decoder is not deeper than the encoder; a shallower one mirrors the encoder's last layers.
        rate_bound: d/2 log(1 + 1/eps²), the largest R of unit-norm tokens, and the largest R^c.
    """

    encoder: dict[str, torch.Tensor]
    decoder: dict[str, torch.Tensor]
    rate_bound: float

    @property
    def num_images(self) -> int:
        """Number of images that were measured."""
        return self.encoder["sparsity"].shape[1]

    @property
    def is_overcomplete(self) -> bool:
        """Whether the layers are those of a CRATE-alpha."""
        return "residual_between" in self.encoder

    @property
    def descriptions(self) -> dict[str, str]:
        """What each measure is."""
        if not self.is_overcomplete:
            return DESCRIPTIONS
        return {name: (DESCRIPTIONS | ALPHA_DESCRIPTIONS)[name] for name in self.encoder}

    def table(self) -> list[dict[str, str | int | float]]:
        """Return one row per layer: `part`, `layer` (from 1), `<measure>_mean` and `<measure>_std` over the images."""
        rows: list[dict[str, str | int | float]] = []
        for part, measures in (("encoder", self.encoder), ("decoder", self.decoder)):
            for layer in range(len(next(iter(measures.values()), ()))):
                row: dict[str, str | int | float] = {"part": part, "layer": layer + 1}
                for name, values in measures.items():
                    row[f"{name}_mean"] = values[layer].mean().item()
                    row[f"{name}_std"] = values[layer].std(correction=0).item()
                rows.append(row)
        return rows


def layer_report(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor | None = None,
    eps_squared: float = 0.01,
    batch_size: int = 4,
) -> LayerReport:
    """Measure what each encoder and decoder layer does; the report's `descriptions` say what each number is.

    The layers are observed by forward hooks while the model runs in evaluation mode, without gradients; the model is
    left as it was, also when the forward raises. All N tokens count, cls and mask tokens included.

    Args:
        model: Any CRATE-MAE, CRATE or CRATE-alpha model; only one for pre-training has decoder layers to measure.
        pixel_values: Images of shape `(num_images, num_channels, height, width)`, as the model takes them; positions
            are interpolated if the images have another size than the model's.
        bool_masked_pos: True where a patch is masked, `(num_images, num_patches)`; nothing when left out.
        eps_squared: eps² of the coding rates.
        batch_size: Number of images that are in memory at a time.

    Raises:
        ValueError: If the model is none of these, or images or mask do not fit it.
    """
    if not is_white_box(model):
        raise ValueError(f"`model` must be a CRATE-MAE or CRATE model, got {type(model).__name__}.")
    encoder_layers = list(cast(Any, model.base_model).layers)
    check_pixel_values(model, pixel_values)
    decoder = getattr(model, "decoder", None)
    layers = encoder_layers + ([] if decoder is None else list(decoder.layers))
    if bool_masked_pos is None:
        rows, columns = patch_grid(model, pixel_values)
        bool_masked_pos = torch.zeros(len(pixel_values), rows * columns, dtype=torch.bool)
    run = run_encoder if decoder is None else predict_patches
    chunks = []
    starts = range(0, len(pixel_values), batch_size)
    for start in tqdm(starts, desc="Measuring layers", disable=len(starts) == 1):
        observer = _Observer(encoder_layers, layers[len(encoder_layers) :], eps_squared)
        with inference(model):
            with forward_hooks(observer.hooks()):
                run(model, pixel_values[start : start + batch_size], bool_masked_pos[start : start + batch_size])
            observer.measure_inversion()
        chunks.append(observer.measures)
    measures = _join(chunks, layers)
    encoder, decoder_measures = measures[: len(encoder_layers)], measures[len(encoder_layers) :]
    return LayerReport(
        encoder=_stack(encoder, len(pixel_values)),
        decoder=_stack(decoder_measures, len(pixel_values)),
        rate_bound=_rate_bound(model, eps_squared),
    )


def observe_layers(model: PreTrainedModel, run: Callable[[], Any], eps_squared: float = 0.01) -> LayerReport:
    """Measure CRATE's layers in an encoder of anything, while it is run once; otherwise as `layer_report`.

    Args:
        model: Its `layers` are [`CrateLayer`].
        run: Runs the model, on one or more sets of tokens: as the report has it, images.
        eps_squared: eps² of the coding rates.
    """
    layers = list(cast(Any, model).layers)
    observer = _Observer(layers, [], eps_squared)
    with inference(model), forward_hooks(observer.hooks()):
        run()
    encoder = _stack(_join([observer.measures], layers), len(observer.measures[0]["sparsity"]))
    return LayerReport(encoder=encoder, decoder={}, rate_bound=_rate_bound(model, eps_squared))


def _rate_bound(model: PreTrainedModel, eps_squared: float) -> float:
    return model.config.hidden_size / 2 * math.log1p(1 / eps_squared)


def _join(chunks: list[list[dict[str, list[float]]]], layers: list[Any]) -> list[Measures]:
    """Join what was measured of each layer, image by image, with what its weights say."""
    return [
        {
            name: torch.tensor([number for chunk in chunks for number in chunk[i][name]], dtype=torch.float64)
            for name in chunks[0][i]
        }
        | _weight_measures(layer)
        for i, layer in enumerate(layers)
    ]


def _stack(measures: list[Measures], num_images: int) -> dict[str, torch.Tensor]:
    names = measures[0] if measures else {}
    return {name: torch.stack([layer[name].expand(num_images) for layer in measures]) for name in names}


def _weight_measures(layer: Any) -> Measures:
    """Measure what depends on the layer's weights alone."""
    weight = layer.mssa.subspace_proj.weight
    ista = getattr(layer, "ista", layer)  # a decoder layer has its dictionary itself
    measures = {
        "subspace_coherence": subspace_coherence(weight, weight.shape[0] // layer.mssa.head_dim),
        "dictionary_defect": orthogonality_defect(ista.dictionary),
    }
    if isinstance(ista, CrateAlphaISTA):
        dictionary = ista.dictionary.detach().cpu().double()
        measures["step_bound"] = ista.step_size * torch.linalg.matrix_norm(dictionary, 2) ** 2
        if ista.output_dictionary is not None:
            output_dictionary = ista.output_dictionary.detach().cpu().double()
            measures["output_dictionary_defect"] = orthogonality_defect(output_dictionary)
            cosines = nn.functional.cosine_similarity(dictionary, output_dictionary, dim=0)
            measures["dictionary_agreement"] = cosines.mean()
    return measures


def _codes(ista: CrateISTA | CrateAlphaISTA, tokens: torch.Tensor, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the code of normed tokens before, between and after the ISTA steps of a layer with that output."""
    if isinstance(ista, CrateAlphaISTA):
        first, second = ista.codes(tokens)
        return {"before": torch.zeros_like(first), "between": first, "after": second}
    return {"before": tokens, "after": output}


def _energy(tokens: torch.Tensor) -> torch.Tensor:
    """Squared norm of all tokens of each image."""
    return tokens.double().square().sum(dim=(1, 2))


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of each image of the cosine between two versions of a token, each centred over its width."""
    first, second = (x.double() - x.double().mean(dim=-1, keepdim=True) for x in (first, second))
    return nn.functional.cosine_similarity(first, second, dim=-1).mean(dim=1)


class _Observer:
    """Measures each layer as its forward ends; of the activations it keeps the encoder's hidden states alone.

    Args:
        encoder_layers: Layers f_1 to f_L.
        decoder_layers: Layers g_1, g_2, ...; may be none.
        eps_squared: eps² of the coding rates.
    """

    def __init__(self, encoder_layers: list[Any], decoder_layers: list[Any], eps_squared: float):
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.eps_squared = eps_squared
        # One per layer, encoder first, a number per image. Not tensors: small ones that stay, between large ones that
        # go, keep glibc's allocator from using the memory of the large ones again.
        self.measures: list[dict[str, list[float]]] = []
        self.hidden_states: list[torch.Tensor] = []  # z^0 ... z^L
        self.decoder_input: torch.Tensor | None = None
        self.parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # input and output of the current layer's parts

    def hooks(self) -> dict[nn.Module, Callable[..., None]]:
        """Return a hook for each module that is observed; a layer's own is the last of its hooks to be called."""

        def keep(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                self.parts[name] = (arguments[0], output)

            return hook

        hooks: dict[nn.Module, Callable[..., None]] = {}
        for layers, measure in (
            (self.encoder_layers, self.measure_encoder),
            (self.decoder_layers, self.measure_decoder),
        ):
            for layer in layers:
                hooks |= {
                    layer.layernorm_before: keep("before"),
                    layer.mssa.subspace_proj: keep("codes"),
                    layer.layernorm_after: keep("after"),
                    layer: measure,
                }
        return hooks

    def measure_encoder(self, layer: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Measure `z_half = z + MSSA(LN(z)),  n = LN(z_half),  z' = ISTA(n)`, or beside a skip connection."""
        z, (z_half, n) = self.parts["before"][0], self.parts["after"]
        if not self.hidden_states:
            self.hidden_states.append(z)
        self.hidden_states.append(output)
        sparsity_weight = layer.ista.threshold / layer.ista.step_size
        codes = _codes(layer.ista, n, output)
        measures = self.common_measures(layer, z, z_half, output, codes["after"])
        if isinstance(layer.ista, CrateAlphaISTA):
            measures["ista_energy"] = _energy(layer.ista.decode(codes["after"])) / _energy(z_half)
        else:
            measures["ista_energy"] = _energy(output - n) / _energy(n)
        for moment, code in codes.items():
            residual = n - nn.functional.linear(code, layer.ista.dictionary)
            measures[f"residual_{moment}"] = _energy(residual) / 2 / n.shape[1]
            measures[f"l1_{moment}"] = sparsity_weight * code.double().abs().sum(dim=(1, 2)) / n.shape[1]
        self.finish_layer(measures)

    def measure_decoder(self, layer: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Measure `n = LN(y),  y_half = n Dᵀ,  y' = y_half - MSSA(LN(y_half))`."""
        (y, n), y_half = self.parts["before"], self.parts["after"][0]
        if self.decoder_input is None:
            self.decoder_input = y
        measures = self.common_measures(layer, y_half, output, output, output)
        measures["dictionary_energy"] = _energy(y_half - n) / _energy(n)
        if len(self.decoder_layers) <= len(self.encoder_layers):
            target = self.hidden_states[2 * len(self.encoder_layers) - len(self.measures) - 1]
            measures["inversion_in_flow"] = _cosine(output, target)
        self.finish_layer(measures)

    def finish_layer(self, measures: Measures) -> None:
        self.measures.append({name: values.tolist() for name, values in measures.items()})
        self.parts.clear()

    def common_measures(
        self, layer: Any, before: torch.Tensor, after: torch.Tensor, output: torch.Tensor, code: torch.Tensor
    ) -> Measures:
        """Measure the layer's output and its code, and its MSSA step from `before` to `after`."""
        projection = layer.mssa.subspace_proj.weight
        flat_codes = {
            "codes": self.parts["codes"][1],
            "before": nn.functional.linear(before, projection),
            "after": nn.functional.linear(after, projection),
        }
        measures = {
            "sparsity": sparsity(code),
            "nonzero_share": nonzero_share(code),
            "mssa_energy": _energy(after - before) / _energy(before),
        }
        for suffix, normalize in (("", False), ("_unit", True)):
            measures[f"coding_rate{suffix}"] = coding_rate(output, self.eps_squared, normalize)
            for name, flat in flat_codes.items():
                codes = flat.unflatten(2, (-1, layer.mssa.head_dim)).transpose(1, 2)
                measures[f"subspace_rate_{name}{suffix}"] = subspace_coding_rate(codes, self.eps_squared, normalize)
        return measures

    def measure_inversion(self) -> None:
        """Give each decoder layer, by itself, the output of the encoder layer that it mirrors. Needs the hooks gone."""
        num_layers = len(self.encoder_layers)
        if len(self.decoder_layers) > num_layers:
            return
        for i, layer in enumerate(self.decoder_layers):
            code, target = self.hidden_states[num_layers - i], self.hidden_states[num_layers - i - 1]
            # The first one has the encoder's final layer norm before it.
            inverted = layer(code if i else self.decoder_input)
            self.measures[num_layers + i]["inversion"] = _cosine(inverted, target).tolist()
            self.measures[num_layers + i]["inversion_identity"] = _cosine(code, target).tolist()
