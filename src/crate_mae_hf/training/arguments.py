"""Arguments of the scripts that train."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..configuration_crate_mae import CrateMaeConfig


@dataclass
class ModelArguments:
    """Which model to train: a checkpoint, a configuration, or a new one that the script's own arguments describe."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint to start from."})
    config_name: str | None = field(default=None, metadata={"help": "A configuration to start from, without weights."})
    config_overrides: str | None = field(
        default=None, metadata={"help": 'Changes to the configuration, as "image_size=32,patch_size=4".'}
    )
    image_processor_name: str | None = field(default=None, metadata={"help": "An image processor to use."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})

    @property
    def config_source(self) -> str | None:
        """Where the configuration comes from; None for a new one."""
        return self.config_name or self.model_name_or_path

    def hub_access(self) -> dict[str, Any]:
        """Return what every `from_pretrained` is called with."""
        return {"revision": self.model_revision, "token": self.token}


@dataclass
class ScriptTrainingArguments(TrainingArguments):
    """Transformers' training arguments, with a learning rate that may grow with the batch: base rate * batch / 256.

    Raises:
        ValueError: If a number of images, batches or epochs is not positive.
    """

    base_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of a batch of 256; wins over `learning_rate`."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Allow an output folder with contents: files of the same name are replaced; the checkpoints and "
            "results of the run before are moved into its subfolder _previous_runs."
        },
    )

    def __post_init__(self) -> None:
        names = ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"]
        names += ["num_train_epochs"] if self.max_steps <= 0 else []
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        super().__post_init__()

    def check_length(self, streaming: bool) -> None:
        """Check that the length of the training is known.

        Raises:
            ValueError: If the images are streamed, and no number of steps is given.
        """
        if streaming and self.max_steps <= 0:
            raise ValueError("`max_steps` is needed with `streaming`: the number of images is not known.")

    def scale_learning_rate(self) -> None:
        """Set `learning_rate` by `base_learning_rate`, where there is one, and the batch of all processes."""
        if self.base_learning_rate is not None:
            batch_size = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.learning_rate = self.base_learning_rate * batch_size / 256


@dataclass
class SizedModelArguments(ModelArguments):
    """Which model to train: a checkpoint, a configuration, or one of the published sizes."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint to continue from."})
    model_size: str = field(
        default="base", metadata={"help": "The size to start from otherwise.", "choices": list(CrateMaeConfig.sizes)}
    )


@dataclass
class MaeModelArguments(SizedModelArguments):
    """Which masked autoencoder to train."""

    mask_ratio: float | None = field(default=None, metadata={"help": "Share of the patches to mask."})
    norm_pix_loss: bool | None = field(default=None, metadata={"help": "Normalise the targets patch by patch."})


@dataclass
class AutoencoderArguments(MaeModelArguments):
    """Which autoencoder to train."""

    model_type: str = field(
        default="crate_mae", metadata={"help": "The kind of autoencoder to train.", "choices": ["crate_mae", "vit_mae"]}
    )


@dataclass
class MaeTrainingArguments(ScriptTrainingArguments):
    """Training arguments that fit a model of which every parameter gets a gradient."""

    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every parameter of the model gets a gradient."}
    )
