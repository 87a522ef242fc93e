"""Pictures of a training run."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def loss_curve(log_history: Sequence[dict[str, Any]]) -> Figure:
    """Draw training and evaluation loss against the step.

    Args:
        log_history: `trainer.state.log_history`, or `log_history` of a trainer_state.json.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"], float(entry[key])) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="optimizer step", ylabel="loss: mean squared error over masked patches", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure
