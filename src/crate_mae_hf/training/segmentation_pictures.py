"""What a model for semantic segmentation makes of images when it is evaluated, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters import inference
from ..analysis.figures import to_display
from ..analysis.pictures import segmentation_grid
from ..evaluation.segmentation import predict_classes
from .color_predictions import spread

PICTURE = "segmentation.png"
NUM_DRAWN = 8  # evenly spread over the evaluation images


class SegmentationPictures(TrainerCallback):
    """Draws images, their masks and what the model makes of them into the output folder at every evaluation.

    Args:
        eval_dataset: Images to evaluate on, as `pixel_values` and `labels`.
        processor: Image processor of the model.
        class_names: Name of each class.
    """

    def __init__(self, eval_dataset: Any, processor: Any, class_names: Sequence[str]):
        self.eval_dataset = eval_dataset
        self.processor = processor
        self.class_names = class_names

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        (batch,) = DataLoader(spread(self.eval_dataset, NUM_DRAWN), NUM_DRAWN)
        with inference(model):
            logits = model(batch["pixel_values"].to(model.device)).logits
        predictions = predict_classes(logits, batch["labels"].shape[1:]).cpu()
        images = to_display(batch["pixel_values"], self.processor.image_mean, self.processor.image_std)
        figure = segmentation_grid(images, batch["labels"], predictions, self.class_names)
        figure.savefig(Path(str(args.output_dir)) / PICTURE, dpi=130)
