"""The hypergradient on a three-level problem, against Betty's differences and the exact products."""

import pytest
import torch
from official_mlo_mae import Toy, pick

from crate_mae_hf.objectives.hypergradient import hypergradient, mixed_product

EXACT = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture
def toy() -> Toy:
    return Toy()


def gradient(toy: Toy, pre: str, fin: str, val: str, alpha: float = 0.01) -> list[torch.Tensor]:
    return hypergradient(
        lambda: toy.pretrain(pre)["loss_pre"],
        lambda: toy.classify(fin),
        lambda: toy.classify(val),
        *(toy.parameters(module) for module in ("pre", "fin", "mask")),
        alpha,
    )


def descend(toy: Toy, module: str, loss: torch.Tensor) -> None:
    toy.update(module, torch.autograd.grad(loss, toy.parameters(module)))


def compare(gradients: list[torch.Tensor], toy: Toy, group: str, module: str = "mask", **tolerance) -> None:
    """Compare a gradient with golden values by the norm of their difference."""
    expected = pick(toy.tensors, f"toy.expected.hyper.{group}.")
    ours = torch.cat([value.flatten() for value in gradients])
    theirs = torch.cat([expected[name].flatten() for name in toy.weights[module]])
    assert (ours - theirs).norm() <= tolerance["rtol"] * theirs.norm()


def test_the_first_level_is_the_official_one(toy):
    outputs = toy.pretrain("pre_1")
    expected = pick(toy.tensors, "toy.expected.initial.")
    for name, value in outputs.items():
        torch.testing.assert_close(value.squeeze(), expected[name].double().squeeze(), **EXACT)
    (scores, *weights) = torch.autograd.grad(outputs["loss_pre"], [outputs["scores"], *toy.parameters("mask")])
    torch.testing.assert_close(scores, expected["grad_scores"], **EXACT)
    for name, value in zip(toy.weights["mask"], weights, strict=True):
        torch.testing.assert_close(value, expected[f"grad_mask.{name}"], **EXACT)


def test_two_whole_cycles(toy):
    losses, batches = [], {"pre": iter(range(1, 5)), "fin": iter((1, 2)), "mask": iter((1, 2))}
    last = {}
    for number, module in enumerate(toy.settings["order"], 1):
        last[module] = f"{'val' if module == 'mask' else module}_{next(batches[module])}"
        if module == "mask":
            losses.append(toy.classify(last["mask"]))
            toy.update("mask", gradient(toy, last["pre"], last["fin"], last["mask"]))
        else:
            losses.append(toy.pretrain(last["pre"])["loss_pre"] if module == "pre" else toy.classify(last["fin"]))
            descend(toy, module, losses[-1])
        for name, value in pick(toy.tensors, f"toy.expected.step_{number}.{module}.").items():
            torch.testing.assert_close(toy.weights[module][name].detach(), value, **EXACT)
    torch.testing.assert_close(torch.stack(losses).detach(), toy.tensors["toy.expected.losses"], **EXACT)


@pytest.fixture
def before_the_third_level(toy) -> Toy:
    """The problem after levels I, I and II of the first cycle."""
    descend(toy, "pre", toy.pretrain("pre_1")["loss_pre"])
    descend(toy, "pre", toy.pretrain("pre_2")["loss_pre"])
    descend(toy, "fin", toy.classify("fin_1"))
    return toy


def test_each_path_is_bettys_and_close_to_the_exact_one(before_the_third_level):
    toy = before_the_third_level
    pre, fin, mask = (toy.parameters(module) for module in ("pre", "fin", "mask"))
    v = torch.autograd.grad(toy.classify("val_1"), [*fin, *pre], materialize_grads=True)
    v_head, v_encoder = v[: len(fin)], v[len(fin) :]
    compare(v_head, toy, "v_C", "fin", rtol=1e-12)
    compare(v_encoder, toy, "v_E", "pre", rtol=1e-12)
    cross = mixed_product(lambda: toy.classify("fin_1"), pre, fin, v_head, 0.01)

    def loss() -> torch.Tensor:
        return toy.pretrain("pre_2")["loss_pre"]

    paths = {"path_finetune": cross, "path_direct": v_encoder}
    paths = {name: mixed_product(loss, mask, pre, vector, 0.01) for name, vector in paths.items()}
    whole = gradient(toy, "pre_2", "fin_1", "val_1")
    for source, rtol in (("betty", 1e-8), ("exact", 1e-3)):
        compare(cross, toy, f"{source}_cross", "pre", rtol=rtol)
        compare(whole, toy, source, rtol=rtol)
        for name, product in paths.items():
            compare(product, toy, f"{source}_{name}", rtol=rtol)


def test_differences_come_closer_with_their_step(before_the_third_level):
    toy = before_the_third_level
    exact = torch.cat([toy.tensors[f"toy.expected.hyper.exact.{name}"].flatten() for name in toy.weights["mask"]])
    errors = []
    for alpha in (0.3, 0.03):
        whole = gradient(toy, "pre_2", "fin_1", "val_1", alpha)
        errors.append((torch.cat([value.flatten() for value in whole]) - exact).norm() / exact.norm())
    assert errors[1] < 0.02 * errors[0]  # by a hundred


def test_weights_and_gradients_are_left_as_they_were(toy):
    before = {
        name: {key: value.detach().clone() for key, value in group.items()} for name, group in toy.weights.items()
    }
    for parameter in toy.parameters("pre"):
        parameter.grad = torch.ones_like(parameter)
    gradient(toy, "pre_2", "fin_1", "val_1")
    for name, group in toy.weights.items():
        for key, value in group.items():
            assert torch.equal(value, before[name][key])
            assert value.requires_grad
            assert (value.grad == 1).all() if name == "pre" else value.grad is None


def test_weights_are_put_back_after_an_error(toy):
    before = [value.detach().clone() for value in toy.parameters("pre")]

    def fail() -> torch.Tensor:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        mixed_product(fail, toy.parameters("mask"), toy.parameters("pre"), before, 0.01)
    for value, parameter in zip(before, toy.parameters("pre"), strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad


def test_both_sides_of_a_difference_draw_the_same():
    weight, parameter = (torch.full((1000,), value, requires_grad=True) for value in (1.0, 2.0))
    drawn = []

    def loss() -> torch.Tensor:
        drawn.append(torch.rand(1000))
        return (drawn[-1] * weight * parameter).sum()

    (product,) = mixed_product(loss, [parameter], [weight], [torch.ones(1000)], 1.0)
    assert torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(product, -drawn[0], atol=1e-4, rtol=1e-4)
    loss()
    assert not torch.equal(drawn[2], drawn[1])  # the next batch has draws of its own


def test_a_vector_of_zeros_gives_zeros(toy):
    zeros = [torch.zeros_like(value) for value in toy.parameters("pre")]
    products = mixed_product(lambda: pytest.fail("not needed"), toy.parameters("mask"), toy.parameters("pre"), zeros, 1)
    assert not any(product.any() for product in products)
