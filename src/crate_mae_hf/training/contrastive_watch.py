"""A contrastive loss that stays at chance has taught nothing: say so."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The loss counts as learnt when it is this far below chance, and is looked at when so much of the training is over.
MARGIN, PATIENCE = 0.05, 0.2


class ContrastiveWatch(TrainerCallback):
    """Warns once where the contrastive loss is still about ln(2B - 1) when a part of the training is over."""

    def __init__(self) -> None:
        self.done = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if self.done or "contrastive" not in logs or state.global_step < PATIENCE * state.max_steps:
            return
        self.done = True
        contrastive, chance = float(logs["contrastive"]), float(logs["chance"])
        if state.is_world_process_zero and contrastive > (1 - MARGIN) * chance:
            logger.warning(
                f"The contrastive loss is {contrastive:.3f} after {state.global_step} of {state.max_steps} steps, "
                f"where guessing gives {chance:.3f}: nothing tells the pairs apart yet. Try a higher learning rate, a "
                "larger `contrastive_weight`, or views that differ less."
            )
