"""What a split-brain autoencoder predicts when it is evaluated: the error of each tower, and a picture."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..analysis.colors import color_pictures
from ..analysis.figures import color_grid
from ..evaluation.colors import color_errors
from ..hub.cards import COLOR_PICTURE

# Images that are measured and drawn, at most; evenly spread over the evaluation images.
NUM_MEASURED, NUM_DRAWN = 2000, 8


def spread(dataset: Any, number: int) -> Dataset:
    """Return at most so many items of a dataset, evenly spread over it."""
    indices = torch.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().long().tolist()
    return Subset(dataset, indices)


class ColorPredictions(TrainerCallback):
    """Adds to every evaluation the error of each tower beside that of a constant, and draws predictions at the end.

    Args:
        eval_dataset: Images to evaluate on, as `pixel_values`.
    """

    def __init__(self, eval_dataset: Any):
        self.eval_dataset = eval_dataset

    def batches(self, number: int, batch_size: int) -> list[torch.Tensor]:
        """Return the pixel values of at most so many images."""
        return [batch["pixel_values"] for batch in DataLoader(spread(self.eval_dataset, number), batch_size)]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        errors = color_errors(model, self.batches(NUM_MEASURED, args.per_device_eval_batch_size))
        (metrics if metrics is not None else {}).update({f"eval_{name}": value for name, value in errors.items()})
        if state.is_world_process_zero:
            (pixel_values,) = self.batches(NUM_DRAWN, NUM_DRAWN)
            folder = Path(str(args.output_dir))
            color_grid(color_pictures(model, pixel_values)).savefig(folder / COLOR_PICTURE, dpi=130)
