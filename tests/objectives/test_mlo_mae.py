import pytest
import torch
from official_mlo_mae import MASKING_NAMES, expected_weights, official_vit, pick, read_reference
from official_vic_mae import SMALL_VIT_MAE
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining
from crate_mae_hf.adapters import fill_vit_mae, patch_tokens
from crate_mae_hf.objectives.mlo_mae import MASKING, MaskingNetwork, MloMae, mask_entropy
from crate_mae_hf.objectives.objective import FILE

EXACT = {"atol": 1e-10, "rtol": 1e-10}
ROUNDED = {"atol": 1e-8, "rtol": 1e-6}  # of golden values in float32
CRATE_MAE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


def build(model_type: str, **settings) -> MloMae:
    torch.manual_seed(0)
    if model_type == "crate_mae":
        config = CrateMaeConfig(**CRATE_MAE, norm_pix_loss=True)
        autoencoder = CrateMaeForPreTraining(config)
    else:
        config = ViTMAEConfig(**SMALL_VIT_MAE, norm_pix_loss=True)
        autoencoder = ViTMAEForPreTraining(config)
        fill_vit_mae(autoencoder)
    return MloMae(autoencoder, 3, **{"mask_hidden_size": 12, "head_dropout": 0.0, **settings})


both = pytest.mark.parametrize("model_type", ["crate_mae", "vit_mae"])


def draw(number: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(number, 3, 32, 32, generator=generator),
        "labels": torch.randint(3, (number,), generator=generator),
    }


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


# The golden values


def test_the_masking_network_is_the_official_one():
    metadata, tensors = read_reference("mlo_mae_micro")
    sizes = metadata["masking"]
    network = MaskingNetwork(sizes["N"], sizes["D"], sizes["hidden"]).double()
    network.load_state_dict(pick(tensors, "masking.checkpoint.", MASKING_NAMES))
    tokens = tensors["masking.tokens"].requires_grad_()
    scores = network(tokens)
    torch.testing.assert_close(scores, tensors["masking.expected.scores"], **EXACT)
    (scores * tensors["masking.cotangent"]).sum().backward()
    torch.testing.assert_close(tokens.grad, tensors["masking.expected.grad_tokens"], **EXACT)
    for name, value in pick(tensors, "masking.expected.grad.", MASKING_NAMES).items():
        torch.testing.assert_close(network.get_parameter(name).grad, value, **EXACT)
    for ratio, kept in sizes["kept"].items():
        model = CrateMaeForPreTraining(CrateMaeConfig(**CRATE_MAE, mask_ratio=float(ratio)))
        expected = pick(tensors, f"masking.expected.ratio_{ratio}.")
        assert torch.equal(model.sample_mask(scores), expected["mask"].bool())
        order = scores.argsort(dim=1)
        assert torch.equal(order.argsort(dim=1), expected["ids_restore"].long())
        positions = order[:, :kept, None].expand(-1, -1, sizes["D"])
        assert torch.equal(tokens.gather(1, positions), expected["kept_tokens"])


def test_the_first_level_is_the_official_one():
    objective, _, tensors = official_vit()
    expected = pick(tensors, "expected.level1.")
    pixel_values = tensors["batch.pre_1.pixel_values"]
    torch.testing.assert_close(patch_tokens(objective.autoencoder, pixel_values), expected["tokens"], **EXACT)
    outputs = objective(pixel_values)
    outputs.scores.retain_grad()
    outputs.loss.backward()
    torch.testing.assert_close(outputs.scores, expected["scores"], **EXACT)
    torch.testing.assert_close(outputs.scores.grad, expected["grad_scores"], **EXACT)
    torch.testing.assert_close(outputs.loss, expected["loss"].squeeze(), **EXACT)
    assert torch.equal(outputs.mask, expected["mask"].float())
    plain = objective.autoencoder(pixel_values, noise=outputs.scores.detach())
    assert torch.equal(plain.ids_restore, expected["ids_restore"].long())
    torch.testing.assert_close(plain.logits, expected["logits"], **ROUNDED)
    gradients = expected_weights(tensors, "expected.level1.grad")
    assert len(gradients) > 40
    for name, parameter in objective.named_parameters():
        if not name.startswith("head."):
            torch.testing.assert_close(parameter.grad, gradients.pop(name), **ROUNDED, msg=name)
    assert not gradients


def test_the_head_is_the_official_one():
    objective, _, tensors = official_vit()
    batch = pick(tensors, "batch.fin_1.")
    loss = objective.head_loss(objective.features(batch["pixel_values"]), batch["labels"].long())
    torch.testing.assert_close(loss, tensors["expected.level2.loss"].squeeze(), **EXACT)
    gradients = torch.autograd.grad(loss, list(objective.head.parameters()))
    expected = expected_weights(tensors, "expected.level2.grad")
    for (name, _), gradient in zip(objective.head.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, expected[f"head.{name}"], **EXACT)
    batch = pick(tensors, "batch.val_1.")
    features = objective.features(batch["pixel_values"])
    torch.testing.assert_close(features, tensors["expected.level3.cls"], **EXACT)
    torch.testing.assert_close(objective.head(features), tensors["expected.level3.logits"], **EXACT)
    loss = objective.head_loss(features, batch["labels"].long())
    torch.testing.assert_close(loss, tensors["expected.level3.loss"].squeeze(), **EXACT)


def test_random_masks_are_the_official_ones():
    objective, _, tensors = official_vit(masks="random")
    loss = objective(tensors["batch.pre_1.pixel_values"], noise=tensors["baseline.noise"]).loss
    torch.testing.assert_close(loss, tensors["baseline.expected.loss"].squeeze(), **EXACT)


@pytest.mark.parametrize("freeze_ranking", [False, True])  # no patch changes sides here
def test_a_whole_cycle_and_its_hypergradient(freeze_ranking):
    objective, metadata, tensors = official_vit(freeze_ranking=freeze_ranking)
    groups = {"pretrain": objective.autoencoder, "finetune": objective.head, "mask": objective.masking}
    losses = []

    def descend(group: str, gradients) -> None:
        with torch.no_grad():
            for weight, gradient in zip(groups[group].parameters(), gradients, strict=True):
                weight -= metadata["lr"][group] * gradient

    batches = {name: pick(tensors, f"batch.{name}.") for name in ("pre_1", "pre_2", "fin_1", "val_1")}
    for batch in batches.values():
        if "labels" in batch:
            batch["labels"] = batch["labels"].long()
    for name in ("pre_1", "pre_2"):
        losses.append(objective(**batches[name]).loss)
        descend("pretrain", torch.autograd.grad(losses[-1], list(objective.autoencoder.parameters())))
    losses.append(objective.head_loss(objective.features(batches["fin_1"]["pixel_values"]), batches["fin_1"]["labels"]))
    descend("finetune", torch.autograd.grad(losses[-1], list(objective.head.parameters())))
    gradients, loss = objective.mask_gradient(batches["pre_2"], batches["fin_1"], batches["val_1"])
    losses.append(loss)
    for source, rtol in (("betty", 1e-8), ("exact", 1e-3)):
        expected = pick(tensors, f"expected.hyper.{source}.", MASKING_NAMES)
        theirs = flat(expected[name] for name, _ in objective.masking.named_parameters())
        assert (flat(gradients) - theirs).norm() <= rtol * theirs.norm()
    descend("mask", gradients)
    torch.testing.assert_close(torch.stack(losses).detach(), tensors["expected.cycle.losses"], **EXACT)
    expected = expected_weights(tensors, "expected.cycle")
    assert expected.keys() == objective.state_dict().keys()
    for name, value in objective.state_dict().items():
        torch.testing.assert_close(value, expected[name], **ROUNDED, msg=name)


# What holds for every autoencoder


def exact_gradient(objective: MloMae, images: dict, finetuning: dict, validation: dict) -> torch.Tensor:
    """The hypergradient by second derivatives, which the other implementations of attention do not have."""
    groups = (objective.autoencoder, objective.head, objective.masking)
    encoder, head, mask = ([p for p in group.parameters() if p.requires_grad] for group in groups)

    def classify(batch: dict) -> torch.Tensor:
        return objective.head_loss(objective.features(batch["pixel_values"]), batch["labels"])

    def product(loss: torch.Tensor, weights: list, vector: list, parameters: list) -> list[torch.Tensor]:
        grads = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        inner = sum((grad * v).sum() for grad, v in zip(grads, vector, strict=True))
        return [-value for value in torch.autograd.grad(inner, parameters, materialize_grads=True)]

    v = torch.autograd.grad(classify(validation), [*head, *encoder], materialize_grads=True)
    cross = product(classify(finetuning), head, v[: len(head)], encoder)
    total = [first + second for first, second in zip(cross, v[len(head) :], strict=True)]
    return flat(product(objective(**images).loss, encoder, total, mask))


@both
@sdpa_kernel(SDPBackend.MATH)
def test_the_hypergradient_is_close_to_the_exact_one(model_type):
    """As close as the step is short: at 0.01, ReLUs of CRATE-MAE's sparse steps that change sides make it 13 % off."""
    objective = build(model_type, freeze_ranking=True).double()
    batches = [draw(6, seed) for seed in (1, 2, 3)]
    images, *others = ({**batch, "pixel_values": batch["pixel_values"].double()} for batch in batches)
    del images["labels"]
    model = objective.autoencoder
    if model_type == "crate_mae":  # whose errors are in float32
        targets = model.patch_targets(images["pixel_values"]).double()
        model.patch_errors = lambda pixel_values, logits: (logits - targets).pow(2).mean(dim=-1)
    gradients, _ = objective.mask_gradient(images, *others, alpha=1e-4)
    exact = exact_gradient(objective, images, *others)
    assert (flat(gradients) - exact).norm() < 1e-4 * exact.norm()


@both
def test_the_validation_loss_falls_along_the_hypergradient(model_type):
    """T acts through E, and E through C: one step of each, as the hypergradient has it, with T moved or not."""
    objective = build(model_type, freeze_ranking=True).double()
    batches = [draw(6, seed) for seed in (1, 2, 3)]
    images, finetuning, validation = ({**batch, "pixel_values": batch["pixel_values"].double()} for batch in batches)
    images.pop("labels")
    gradients, _ = objective.mask_gradient(images, finetuning, validation)
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    ranking = objective(**images).scores.detach()
    encoder = [weight for weight in objective.autoencoder.parameters() if weight.requires_grad]

    def solve(step: float) -> torch.Tensor:
        """The validation loss after one step of levels I and II from the same weights, T being `step` along -g_T."""
        objective.load_state_dict(state)
        with torch.no_grad():
            for weight, gradient in zip(objective.masking.parameters(), gradients, strict=True):
                weight -= step * gradient
        for loss, weights in (
            (lambda: objective(**images, ranking=ranking).loss, encoder),
            (lambda: classify(finetuning), list(objective.head.parameters())),
        ):
            grads = torch.autograd.grad(loss(), weights, materialize_grads=True)
            with torch.no_grad():
                for weight, grad in zip(weights, grads, strict=True):
                    weight -= 1e-3 * grad
        return classify(validation).detach()

    def classify(batch: dict) -> torch.Tensor:
        return objective.head_loss(objective.features(batch["pixel_values"]), batch["labels"])

    step = 1 / float(flat(gradients).norm())
    assert solve(step) < solve(0.0) < solve(-step)


@both
def test_random_masks_are_the_masked_autoencoder(model_type):
    objective = build(model_type, masks="random")
    pixel_values, noise = draw()["pixel_values"], torch.rand(6, 16)
    outputs = objective(pixel_values, noise)
    outputs.loss.backward()
    alone = build(model_type).autoencoder
    expected = alone(pixel_values, noise=noise)
    expected.loss.backward()
    assert torch.equal(outputs.loss, expected.loss)
    assert torch.equal(outputs.mask, expected.mask)
    for (name, parameter), other in zip(objective.autoencoder.named_parameters(), alone.parameters(), strict=True):
        if other.grad is not None:
            assert torch.equal(parameter.grad, other.grad), name


@both
def test_masks_are_those_of_the_scores(model_type):
    objective = build(model_type)
    pixel_values = draw()["pixel_values"]
    first, second = objective(pixel_values), objective(pixel_values)
    assert torch.equal(first.mask, second.mask)
    visible = first.scores.masked_fill(first.mask.bool(), -1).amax(dim=1)
    masked = first.scores.masked_fill(~first.mask.bool(), 2).amin(dim=1)
    assert (visible < masked).all()
    assert (first.mask.sum(dim=1) == 12).all()
    errors = first.reconstruction
    assert first.loss < errors  # scores lie below 1
    noisy = build(model_type, score_noise=10.0)
    masks = [noisy(pixel_values, torch.rand(6, 16, generator=torch.Generator().manual_seed(s))).mask for s in (1, 2)]
    assert not torch.equal(*masks)


def test_a_frozen_ranking_does_not_follow_the_weights():
    """Without it, patches that change sides while weights are shifted are in the difference."""
    rankings = {}
    for freeze in (False, True):
        objective = build("crate_mae", freeze_ranking=freeze, score_noise=0.1)
        seen = rankings[freeze] = []
        objective.rank = lambda *args, seen=seen, rank=objective.rank: seen.append(rank(*args)) or seen[-1]
        batches = [draw(6, seed) for seed in (1, 2, 3)]
        images = {"pixel_values": batches[0]["pixel_values"], "noise": torch.rand(6, 16)}
        objective.mask_gradient(images, *batches[1:])
    assert len(rankings[True]) == 1
    assert len(rankings[False]) == 4
    assert not torch.equal(*rankings[False][:2])


def test_the_validation_loss_has_no_dropout():
    objective = build("crate_mae", head_dropout=0.9)
    batches = [draw(6, seed) for seed in (1, 2, 3)]
    images = {"pixel_values": batches[0]["pixel_values"]}
    losses = [objective.mask_gradient(images, *batches[1:])[1] for _ in range(2)]
    assert torch.equal(*losses)
    assert objective.head.training


def test_the_entropy_of_masks_tells_a_collapse():
    assert mask_entropy(torch.tensor([[1, 1, 0, 0]] * 5)) == 0
    assert mask_entropy(torch.ones(5, 4)) == 0
    assert mask_entropy(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])) == pytest.approx(1)
    noise = torch.rand(500, 16, generator=torch.Generator().manual_seed(0))
    assert 0.99 < mask_entropy(noise.argsort(dim=1).argsort(dim=1) >= 4) < 1


@both
def test_the_masking_network_masks_new_images(model_type, tmp_path):
    objective = build(model_type)
    objective.save_rest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {MASKING, FILE}
    pixel_values = draw()["pixel_values"]
    scores = MaskingNetwork.load(tmp_path)(patch_tokens(objective.autoencoder, pixel_values))
    assert torch.equal(objective.autoencoder(pixel_values, noise=scores).mask, objective(pixel_values).mask)


def test_what_is_left_behind_is_kept_for_resuming(tmp_path):
    first = build("crate_mae")
    first.save_rest(tmp_path)
    other = build("crate_mae")
    for parameter in (*other.masking.parameters(), *other.head.parameters()):
        parameter.data.zero_()
    other.load_rest(tmp_path)
    for name, value in first.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(ValueError, match=f"{MASKING} has the sizes .*12}}, not .*7}}"):
        build("crate_mae", mask_hidden_size=7).load_rest(tmp_path)
    with pytest.raises(ValueError, match=f"There is no {MASKING} in"):
        MaskingNetwork.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": "best"}, "`masks` must be one of learned, frozen, random, got 'best'"),
        ({"num_labels": 1}, "`num_labels` must be at least 2, got 1"),
        ({"score_noise": -1.0}, "`score_noise` must not be negative, got -1.0"),
        ({"head_dropout": 1.0}, r"`head_dropout` must lie in \[0, 1\), got 1.0"),
        ({"mask_hidden_size": 0}, "`mask_hidden_size` must be positive, got 0"),
    ],
)
def test_bad_settings(arguments, message):
    autoencoder = CrateMaeForPreTraining(CrateMaeConfig(**CRATE_MAE))
    with pytest.raises(ValueError, match=message):
        MloMae(autoencoder, **{"num_labels": 3, **arguments})


def test_images_of_another_size_are_refused():
    network = MaskingNetwork(16, 32)
    with pytest.raises(ValueError, match=r"`tokens` must have shape \(batch_size, 16, 32\), got \(2, 9, 32\)"):
        network(torch.zeros(2, 9, 32))
