"""A picture of the masks that are learned, at each evaluation."""

from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapters import inference, patch_grid
from ..analysis import figures

# Images that are masked, and those of them that are drawn.
NUM_IMAGES, NUM_DRAWN = 64, 8


class MaskPictures(TrainerCallback):
    """Draws the masks of held-out images into `masks/` in the output folder, one picture per evaluation."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        eval_dataloader: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        dataset = eval_dataloader.dataset
        items = islice((dataset[index] for index in range(len(dataset))), NUM_IMAGES)
        batch = {name: value.to(args.device) for name, value in default_collate(list(items)).items()}
        with inference(model):
            masks = model(**batch).mask.cpu()
        pictures = batch["pixel_values"][:NUM_DRAWN]
        images = figures.to_display(pictures, processing_class.image_mean, processing_class.image_std)
        figure = figures.mask_grid(images, masks, patch_grid(model.autoencoder, pictures))
        folder = Path(str(args.output_dir)) / "masks"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"step_{state.global_step:06}.png", dpi=110)
