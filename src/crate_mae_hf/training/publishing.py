"""The end of a training run: a model card, and the Hub."""

from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer

from ..data.images import ImageArguments
from ..hub import create_model_card, push_folder
from ..objectives.objective import Objective

# What every model card says of a run; scripts add to it.
RECIPE = (
    "optim",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "lr_scheduler_type",
    "warmup_steps",
    "seed",
)


def push_run(trainer: Trainer, data_args: ImageArguments, settings: Sequence[str] = ()) -> None:
    """Write a model card to the output folder and push the folder to the Hub.

    Models of Transformers itself are pushed as Transformers does it.

    Args:
        trainer: Trainer that has trained, evaluated and saved.
        data_args: Arguments that name the images, for the card.
        settings: Training arguments that the card states beside `RECIPE`.
    """
    args, folder = trainer.args, Path(str(trainer.args.output_dir))
    model = trainer.model.autoencoder if isinstance(trainer.model, Objective) else trainer.model
    if not type(model).__module__.startswith("crate_mae_hf."):
        trainer.push_to_hub(dataset=data_args.dataset_name)
        return
    if not trainer.is_world_process_zero():
        return
    # Where it was loaded from; nothing for a new one.
    source = str(getattr(model, "name_or_path", ""))
    create_model_card(
        folder,
        model_id=trainer.hub_model_id,
        base_model=source if source and not Path(source).exists() else None,
        dataset=data_args.hub_dataset,
        data=data_args.data_folders,
        recipe={name: getattr(args, name) for name in (*RECIPE, *settings)},
    ).save(folder / "README.md")
    push_folder(folder, str(trainer.hub_model_id), token=args.hub_token, private=args.hub_private_repo)
