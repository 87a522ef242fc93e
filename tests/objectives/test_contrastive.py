import math

import pytest
import torch
from official_vic_mae import read_reference
from processes import run_processes
from torch.nn import functional as F

from crate_mae_hf.objectives.contrastive import nt_xent


@pytest.mark.parametrize("temperature", ["0.1", "0.5"])
def test_value_and_gradients_are_the_official_ones(temperature):
    _, tensors = read_reference()
    views = [tensors[f"nt_xent.u_{view}"].double().requires_grad_() for view in (1, 2)]
    loss = nt_xent(*views, float(temperature))
    loss.backward()
    expected = f"nt_xent.tau_{temperature}"
    torch.testing.assert_close(loss, tensors[f"{expected}.loss"].squeeze(), atol=1e-10, rtol=1e-10)
    for view, values in enumerate(views, 1):
        torch.testing.assert_close(values.grad, tensors[f"{expected}.grad_u_{view}"], atol=1e-10, rtol=1e-10)


def test_it_is_a_cross_entropy_over_all_other_items():
    first, second = torch.randn(2, 5, 8).double()
    views = F.normalize(torch.cat([first, second]), dim=1)
    losses = []
    for number in range(10):
        others = [other for other in range(10) if other != number]
        similarities = views[others] @ views[number] / 0.2
        losses.append(F.cross_entropy(similarities, torch.tensor(others.index((number + 5) % 10))))
    torch.testing.assert_close(nt_xent(first, second, 0.2), torch.stack(losses).mean())


def test_swapping_the_views_changes_nothing_and_guessing_costs_chance():
    first, second = torch.randn(2, 64, 512)
    torch.testing.assert_close(nt_xent(first, second, 0.1), nt_xent(second, first, 0.1))
    assert nt_xent(first, second, 0.5).item() == pytest.approx(math.log(127), rel=0.02)
    assert nt_xent(first, first, 0.1) < 0.1


def test_half_precision_is_computed_in_float32():
    first, second = torch.randn(2, 6, 8)
    expected = nt_xent(first.bfloat16().float(), second.bfloat16().float(), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(first.bfloat16(), second.bfloat16(), 0.1), expected)


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((3, 4), (2, 4)), 0.1, r"`first` and `second` must both have shape \(batch_size, d\), got \(3, 4\) and"),
        (((3, 4, 1), (3, 4, 1)), 0.1, "must both have shape"),
        (((3, 4), (3, 4)), 0.0, "`temperature` must be positive, got 0.0"),
    ],
)
def test_bad_input(shapes, temperature, message):
    with pytest.raises(ValueError, match=message):
        nt_xent(torch.randn(shapes[0]), torch.randn(shapes[1]), temperature)


def loss_and_gradient(rank: int, views: torch.Tensor) -> tuple[float, torch.Tensor]:
    own = views[rank].clone().requires_grad_()
    loss = nt_xent(own[0], own[1], 0.1)
    loss.backward()
    return loss.item(), own.grad


@pytest.mark.slow
def test_two_processes_have_the_loss_of_the_joint_batch():
    _, tensors = read_reference()
    views = tensors["nt_xent.world2.u"].double()
    results = run_processes(2, loss_and_gradient, views)
    expected = tensors["nt_xent.world2.global_index_loss"].item()
    assert sum(loss for loss, _ in results) / 2 == pytest.approx(expected, abs=1e-10)
    # Each process has the gradient of both losses, whose mean is the joint one.
    gradients = torch.stack([gradient for _, gradient in results]) / 2
    torch.testing.assert_close(gradients, tensors["nt_xent.world2.global_index_grad"], atol=1e-10, rtol=1e-10)
