from crate_mae_hf.training.curves import even_means, loss_curve

# Logged every 10 steps, and before checkpoints at 25 and 26.
LOGS = [(10, 4.0), (20, 3.0), (25, 2.0), (26, 9.0), (30, 1.0), (40, 1.0)]


def test_short_stretches_are_joined_with_what_follows():
    assert even_means(LOGS) == [(10, 4.0), (20, 3.0), (30, (5 * 2.0 + 1 * 9.0 + 4 * 1.0) / 10), (40, 1.0)]
    assert even_means([]) == []
    assert even_means([(7, 2.0)]) == [(7, 2.0)]


def test_loss_curve():
    history = [{"step": step, "loss": str(loss)} for step, loss in LOGS] + [{"step": 40, "eval_loss": 1.5}]
    (axes,) = loss_curve(history).axes
    training, held_out = axes.lines
    assert list(training.get_xdata()) == [10, 20, 30, 40]
    assert list(held_out.get_ydata()) == [1.5]
