"""Pictures of a training run."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def even_means(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Join means over fewer steps than is usual with those after them, so that each point stands for as many.

    Args:
        points: Last step and mean of each stretch of steps; a log before a checkpoint cuts one short.
    """
    lengths = [step - before for (step, _), (before, _) in zip(points, [(0, 0.0), *points], strict=False)]
    joined, total, length = [], 0.0, 0
    for (step, mean), steps in zip(points, lengths, strict=True):
        total, length = total + mean * steps, length + steps
        if length >= statistics.median(lengths):
            joined.append((step, total / length))
            total, length = 0.0, 0
    return joined


def loss_curve(log_history: Sequence[dict[str, Any]]) -> Figure:
    """Draw training and evaluation loss against the step.

    Args:
        log_history: `trainer.state.log_history`, or `log_history` of a trainer_state.json.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"], float(entry[key])) for entry in log_history if key in entry]
        if key == "loss":
            points = even_means(points)
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="optimizer step", ylabel="loss: mean squared error over masked patches", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure
