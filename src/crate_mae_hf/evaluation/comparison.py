"""Comparison of frozen encoders by what a linear probe and nearest neighbours read off their features."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor

from ..adapters import TOWERS, inference, layer_tokens, token_parts
from ..data.decoding import Picture
from ..data.images import image_bytes, read_image, read_pixels, say_how_to_skip
from ..loading import load
from ..tables import Row
from .cache import FeatureCache, digest_bytes, feature_settings
from .encoders import load_encoder, random_encoder
from .features import FEATURES, available_features, extract_features, image_batches, quarter_means, select_features
from .probes import check_labels, draw_evenly, linear_probe, nearest_neighbours


@dataclass
class ProbeSettings:
    """What is read off each encoder, and how.

    Raises:
        ValueError: If a setting is out of its range, or there is no such device.
    """

    features: list[str] | None = field(
        default=None,
        metadata={"help": f"Of {', '.join(FEATURES)}; all that a model has when left out."},
    )
    layer: str = field(
        default="last",
        metadata={"help": 'Index into the hidden states: 0 for the embeddings, k for layer k, -1 or "last".'},
    )
    norm: bool | None = field(
        default=None,
        metadata={"help": "Apply the model's final norm, or do not; when left out, where there is one that fits."},
    )
    raw_pixels: bool = field(
        default=False, metadata={"help": "Add the pixels themselves, as the first model's image processor gives them."}
    )
    few_labels: list[int] = field(
        default_factory=list,
        metadata={"help": "Linear probes also on so many training images only, of each class alike."},
    )
    k: int = field(default=20, metadata={"help": "Nearest neighbours that vote."})
    temperature: float = field(default=0.07, metadata={"help": "Of the neighbours' votes."})
    seed: int = field(
        default=0, metadata={"help": "Decides fresh weights, which labels are few, and on what C is chosen."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images in memory at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode and preprocess images."})
    device: str | None = field(default=None, metadata={"help": 'Where the models run; "cuda" where there is one.'})

    def __post_init__(self) -> None:
        self.layer = str(self.layer)  # a number where it comes from a recipe
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if unknown := set(self.features or ()) - set(FEATURES):
            raise ValueError(f"`features` must be of {', '.join(FEATURES)}, got {', '.join(sorted(unknown))}.")
        if self.layer != "last" and not self.layer.removeprefix("-").isdecimal():
            raise ValueError(f'`layer` must be an integer or "last", got {self.layer!r}.')
        for name in ("k", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must not be negative, got {self.num_workers}.")
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device` {self.device}: {error}") from error

    @property
    def layer_index(self) -> int:
        """The layer as an index into the hidden states."""
        return -1 if self.layer == "last" else int(self.layer)


@dataclass
class Encoder:
    """A model without its head, and how it appears in the table.

    Args:
        name: Name of the model.
        weights: "trained" or "random".
        model: Any vision model of Transformers without its head.
        processor: Image processor of the model.
    """

    name: str
    weights: str
    model: PreTrainedModel
    processor: BaseImageProcessor

    @property
    def num_channels(self) -> int:
        return getattr(self.model.config, "num_channels", 3)


class ProbeImages:
    """Labelled images: those that probes learn from, and those that they are tested on.

    Args:
        train: Images to learn from, undecoded in the column "image", with the numbers of their classes in "label", as
            `load_labelled_datasets` gives them.
        test: Images to test on, in the same columns.

    Raises:
        ValueError: If the labels do not do for a probe, see `check_labels`.
    """

    def __init__(self, train: datasets.Dataset, test: datasets.Dataset):
        self.splits = {"train": train, "test": test}
        self.labels = {name: np.array(split["label"][:]) for name, split in self.splits.items()}
        check_labels(self.labels["train"], self.labels["test"])

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the image files of each split."""
        return {
            name: digest_bytes(image_bytes(image) for image in tqdm(split["image"], desc=f"Reading images, {name}"))
            for name, split in self.splits.items()
        }


class DecodedImages(Dataset):
    """Decodes the images of a dataset when they are asked for.

    Args:
        dataset: Undecoded images in the column "image".
        processor: What they go to. One on torchvision gets plain JPEGs as pixels in 8 bits, `(channels, height,
            width)`: the same, with fewer copies. All others are Pillow images.
    """

    def __init__(self, dataset: datasets.Dataset, processor: BaseImageProcessor | None = None):
        self.dataset = dataset
        self.read = read_pixels if isinstance(processor, TorchvisionBackend) else read_image

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Picture:
        with say_how_to_skip():
            return self.read(self.dataset[index]["image"], (1, 1), f"number {index}")


def load_encoders(
    names: Iterable[str], dtype: torch.dtype = torch.float32, random_seed: int | None = None
) -> list[Encoder]:
    """Load vision models with their image processors.

    Args:
        names: Folders, or names of models on the Hub.
        dtype: Type of the weights.
        random_seed: When given, each model is followed by one of the same shape with fresh weights from this seed.

    Raises:
        ValueError: If a model or its image processor cannot be loaded.
    """
    encoders = []
    for name in names:
        model, processor = load_encoder(name, dtype), load(AutoImageProcessor, name)
        encoders.append(Encoder(name, "trained", model, processor))
        if random_seed is not None:
            encoders.append(Encoder(name, "random", random_encoder(model.config, random_seed, dtype), processor))
    return encoders


def compare(
    encoders: Sequence[Encoder], images: ProbeImages, settings: ProbeSettings, cache: FeatureCache | None = None
) -> list[Row]:
    """Probe the features of each encoder.

    Args:
        encoders: Encoders to compare; each runs on the device of the settings and is moved to the CPU afterwards.
        images: Images to learn from and to test on.
        settings: Settings of features and probes.
        cache: Cache that features are read from where they are, and else kept in.

    Returns:
        One row per encoder and kind of features, with `"linear"` and `"knn"` the accuracies on the test images, and
        `"linear_N"` that of a linear probe on N training images; the raw pixels come last where they are asked for.

    Raises:
        ValueError: If a setting does not fit an encoder or the images; before any features are extracted.
    """
    num_train = len(images.splits["train"])
    if settings.k > num_train:
        raise ValueError(f"`k` must be at most {num_train}, the number of training images, got {settings.k}.")
    drawn = _draw_few(images, settings)
    descriptions = [_describe(encoder, images, settings) for encoder in encoders]
    rows: list[Row] = []
    for encoder, description in zip(encoders, descriptions, strict=True):
        extracted = _extract(encoder, images, settings, cache)
        names = settings.features or available_features(extracted["train"])
        for name in tqdm(names, desc=f"Probes of {encoder.name}"):
            selected = {split: select_features(parts, name) for split, parts in extracted.items()}
            rows.append({**description, "features": name, **_probe(selected, images, settings, drawn)})
    if settings.raw_pixels:
        pixels = _read_pixels(encoders[0], images, settings)
        rows.append({"model": "raw pixels", "features": "pixels", **_probe(pixels, images, settings, drawn)})
    return rows


def _draw_few(images: ProbeImages, settings: ProbeSettings) -> dict[int, np.ndarray]:
    """Return which training images each number of few labels stands for.

    Raises:
        ValueError: If there are fewer, or they are too few for a probe.
    """
    labels, drawn = images.labels, {}
    for count in settings.few_labels:
        try:
            drawn[count] = draw_evenly(labels["train"], count, settings.seed)
            check_labels(labels["train"][drawn[count]], labels["test"])
        except ValueError as error:
            raise ValueError(f"`few_labels` {count}: {error}") from error
    return drawn


def _describe(encoder: Encoder, images: ProbeImages, settings: ProbeSettings) -> Row:
    """Try a model on one image, and return its row of the table as far as it is known.

    Raises:
        ValueError: If image processor, layer, norm or features do not fit the model.
    """
    image = DecodedImages(images.splits["train"])[0]
    (pixel_values,) = image_batches([image], encoder.processor, encoder.num_channels)
    try:
        with inference(encoder.model):
            output = layer_tokens(encoder.model, pixel_values, settings.layer_index, settings.norm)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{encoder.name}: {error}") from error
    missing = [name for name in settings.features or () if "cls" in name and not output.num_prefix_tokens]
    if missing:
        raise ValueError(f"`features`: {encoder.name} has no cls token, so there is no {', '.join(missing)}.")
    if absent := set(settings.features or ()) & set(TOWERS) - set(token_parts(encoder.model)):
        raise ValueError(f"`features`: {encoder.name} has no towers, so there is no {', '.join(sorted(absent))}.")
    patches = output.tokens[:, output.num_prefix_tokens :]
    if "grid" in (settings.features or ()) and quarter_means(patches, pixel_values.shape[2:]) is None:
        raise ValueError(f"`features`: the {patches.shape[1]} patch tokens of {encoder.name} are no grid of quarters.")
    return {
        "model": encoder.name,
        "weights": encoder.weights,
        "parameters": encoder.model.num_parameters(),
        "layer": settings.layer,
        "norm": "yes" if output.normalised else "no",
    }


def _batches(encoder: Encoder, dataset: datasets.Dataset, settings: ProbeSettings) -> DataLoader:
    """Return the pixel values that an encoder takes, batch by batch."""
    images = DecodedImages(dataset, encoder.processor)
    return image_batches(images, encoder.processor, encoder.num_channels, settings.batch_size, settings.num_workers)


def _extract(
    encoder: Encoder, images: ProbeImages, settings: ProbeSettings, cache: FeatureCache | None
) -> dict[str, dict[str, np.ndarray]]:
    """Return the features of each split, from disk where they are."""
    model, layer, norm = encoder.model, settings.layer_index, settings.norm
    with_grid = settings.features is None or "grid" in settings.features
    module: torch.nn.Module = model  # Transformers' own `to` has no types
    module.to(settings.device)

    def extract(split: str) -> dict[str, np.ndarray]:
        def compute() -> dict[str, np.ndarray]:
            description = f"Features of {encoder.name}, {encoder.weights}, {split}"
            batches = _batches(encoder, images.splits[split], settings)
            return extract_features(model, batches, layer, norm, description, with_grid)

        if cache is None:
            return compute()
        key = feature_settings(model, encoder.processor, images.digests[split], layer, norm, with_grid)
        return cache.get(key, compute)

    extracted = {split: extract(split) for split in images.splits}
    module.to("cpu")
    return extracted


def _read_pixels(encoder: Encoder, images: ProbeImages, settings: ProbeSettings) -> dict[str, np.ndarray]:
    """Return the pixel values that an encoder takes, one vector per image."""
    return {
        split: torch.cat(
            [pixels.flatten(1) for pixels in tqdm(_batches(encoder, dataset, settings), desc=f"Pixels, {split}")]
        ).numpy()
        for split, dataset in images.splits.items()
    }


def _probe(
    features: dict[str, np.ndarray], images: ProbeImages, settings: ProbeSettings, drawn: dict[int, np.ndarray]
) -> Row:
    """Return what the probes make of features, given for "train" and "test"; linear ones also on the images drawn."""
    train, test, labels = features["train"], features["test"], images.labels
    row: Row = {"width": train.shape[1]}
    converged = True
    chosen: dict[str, slice | np.ndarray] = {"": slice(None), **{f"_{count}": few for count, few in drawn.items()}}
    for suffix, few in chosen.items():
        linear = linear_probe(train[few], labels["train"][few], test, labels["test"], settings.seed)
        row |= {f"C{suffix}": linear.C, f"linear{suffix}": linear.accuracy}
        converged &= linear.converged
    predicted = nearest_neighbours(train, labels["train"], test, settings.k, settings.temperature)
    row["knn"] = float((predicted == labels["test"]).mean())
    row["converged"] = "yes" if converged else "no"
    return row
