"""A whole run: train, evaluate, save and push, as the training arguments ask for."""

from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer

from ..data.images import ImageArguments
from .output_folder import move_previous
from .publishing import push_run


def run_trainer(
    trainer: Trainer, checkpoint: str | None, data_args: ImageArguments, settings: Sequence[str] = ()
) -> None:
    """Do what `do_train`, `do_eval` and `push_to_hub` ask for; what was measured goes to the log and `output_dir`.

    Args:
        trainer: Trainer whose arguments say what to do.
        checkpoint: Folder of the checkpoint to resume from, or None to start from the beginning.
        data_args: Arguments that name the images, for the model card.
        settings: Training arguments that the model card states beside those of every run.
    """
    args = trainer.args
    if args.do_train:
        if args.should_save:
            move_previous(Path(str(args.output_dir)), checkpoint)
        trainer.accelerator.wait_for_everyone()
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if args.push_to_hub:
        push_run(trainer, data_args, settings)
    # Closes trackers and the process group; gloo may abort where a process exits with the group open.
    trainer.accelerator.end_training()
