"""The Trainer for image classification."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from .layer_decay import apply_layer_decay, decays_weight
from .trainer import SeededTrainer


def freeze_encoder(model: PreTrainedModel) -> None:
    """Leave everything but the head without gradients.

    Raises:
        ValueError: If the model does not tell its encoder from its head.
    """
    if model.base_model is model:
        raise ValueError(f"`freeze_encoder`: {type(model).__name__} does not tell its encoder from its head.")
    model.base_model.requires_grad_(False)


class ClassificationTrainer(SeededTrainer):
    """Trainer with cross entropy for labels and probabilities, layer-wise learning rates, and a head alone if asked.

    Labels are classes `(batch_size,)` or, from mixup, probabilities `(batch_size, num_labels)`. Label smoothing
    (`label_smoothing_factor`) takes part in training only: the loss of an evaluation is plain.

    Args:
        *args: As Trainer has them.
        layer_decay: Factor of the learning rate from one layer to the one below it; see `apply_layer_decay`.
        **kwargs: As Trainer has them.

    Raises:
        ValueError: If `layer_decay` is not in (0, 1].
    """

    # Cross entropy is a mean over the batch: Trainer has to divide it by the accumulation steps itself.
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, layer_decay: float = 1.0, **kwargs: Any):
        if not 0 < layer_decay <= 1:
            raise ValueError(f"`layer_decay` must lie in (0, 1], got {layer_decay}.")
        super().__init__(*args, **kwargs)
        self.layer_decay = layer_decay

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        parameters = dict(model.named_parameters())
        undecayed = getattr(self.model, "_no_weight_decay", ())  # what a model was trained without decay of
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if name in parameters and decays_weight(name, parameters[name]) and name.split(".")[-1] not in undecayed
        ]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.layer_decay < 1:
            apply_layer_decay(optimizer, cast(nn.Module, self.model if model is None else model), self.layer_decay)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        encoder = cast(PreTrainedModel, self.model).base_model
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()  # a frozen encoder; Trainer puts the whole model into training mode before each step
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        loss = nn.functional.cross_entropy(outputs["logits"].float(), labels, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss
