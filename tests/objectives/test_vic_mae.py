import math
import re

import pytest
import torch
from official_vic_mae import SMALL_VIT_MAE, read_reference, rename, to_vit_mae
from processes import run_processes
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining, CrateMaeModel
from crate_mae_hf.adapters import fill_vit_mae, masked_pass
from crate_mae_hf.objectives.objective import FILE, read_description
from crate_mae_hf.objectives.vic_mae import VicMae

SMALL = {"projector_size": 24, "projection_size": 8}
CRATE_MAE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


def build(model_type: str) -> CrateMaeForPreTraining | ViTMAEForPreTraining:
    torch.manual_seed(0)
    if model_type == "crate_mae":
        return CrateMaeForPreTraining(CrateMaeConfig(**CRATE_MAE, norm_pix_loss=True))
    model = ViTMAEForPreTraining(ViTMAEConfig(**SMALL_VIT_MAE, norm_pix_loss=True))
    fill_vit_mae(model)
    return model


both = pytest.mark.parametrize("model_type", ["crate_mae", "vit_mae"])


def draw_pairs(number: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 2, 3, 32, 32, generator=generator), torch.rand(number, 2, 16, generator=generator)


# The golden values


@pytest.fixture(scope="module")
def reference() -> tuple[dict, dict[str, torch.Tensor]]:
    return read_reference()


@pytest.fixture
def official(reference) -> VicMae:
    """The official model in float64."""
    settings, tensors = reference
    objective = VicMae(
        to_vit_mae(settings, tensors),
        contrastive_weight=settings["weight_contrast"],
        reconstruction_weight=settings["weight_recon"],
        temperature=settings["temperature"],
        projector_size=32,
        projection_size=8,
    )
    prefix = "checkpoint.projector."
    weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    weights = {key: value.squeeze() if "num_batches" in key else value for key, value in weights.items()}
    objective.projector.load_state_dict(weights)
    return objective.double()


@pytest.fixture
def batch(reference) -> dict[str, torch.Tensor]:
    tensors = reference[1]
    views = [tensors[f"pixel_values_{view}"].double() for view in (1, 2)]
    return {
        "pixel_values": torch.stack(views, dim=1),
        "noise": torch.stack([tensors["noise_1"], tensors["noise_2"]], dim=1),
    }


def test_losses_gradients_and_running_statistics_are_the_official_ones(official, batch, reference):
    tensors = reference[1]
    outputs = official.train()(**batch)
    outputs.loss.backward()
    exact = {"atol": 1e-10, "rtol": 1e-10}
    names = {"loss": "loss", "loss_recon": "reconstruction", "loss_contrast": "contrastive"}
    # The official position tables are in float32, and so is everything behind them within 1e-7.
    for theirs, ours in names.items():
        torch.testing.assert_close(outputs[ours], tensors[f"expected.{theirs}"].squeeze(), **exact)
    gradients = {name: value.grad for name, value in official.named_parameters() if value.grad is not None}
    expected = {f"autoencoder.{name}": value for name, value in rename(tensors, "expected.grad.").items()}
    prefix = "expected.grad."
    expected |= {key.removeprefix(prefix): value for key, value in tensors.items() if f"{prefix}projector" in key}
    assert len(expected) > 50
    for name, value in expected.items():
        torch.testing.assert_close(gradients.pop(name), value.double(), atol=1e-8, rtol=1e-6, msg=name)
    assert not any(re.search("projector|layer|norm|embeddings.patch", name) for name in gradients)
    buffers = dict(official.named_buffers())
    for key, value in tensors.items():
        if key.startswith("expected.after_train_forward."):
            buffer = buffers[key.removeprefix("expected.after_train_forward.")]
            torch.testing.assert_close(
                buffer, value.squeeze().to(buffer.dtype) if value.numel() == 1 else value, **exact
            )


@pytest.mark.parametrize("training", [True, False])
def test_features_and_projections_are_the_official_ones(official, batch, reference, training):
    tensors = reference[1]
    official.train(training)
    group = "expected" if training else "expected.eval"
    for view in (1, 2):
        passed = masked_pass(official.autoencoder, batch["pixel_values"][:, view - 1], batch["noise"][:, view - 1])
        torch.testing.assert_close(passed.pooled, tensors[f"expected.pooled_{view}"], atol=1e-10, rtol=1e-10)
        loss = (passed.errors * passed.mask).sum() / passed.mask.sum()
        torch.testing.assert_close(loss, tensors[f"expected.loss_recon_{view}"].squeeze(), atol=1e-10, rtol=1e-10)
        projection = official.projector(passed.pooled)
        torch.testing.assert_close(projection, tensors[f"{group}.u_{view}"], atol=1e-10, rtol=1e-10)
    if not training:
        outputs = official(**batch)
        torch.testing.assert_close(outputs.loss, tensors["expected.eval.loss"].squeeze(), atol=1e-10, rtol=1e-10)
        expected = tensors["expected.eval.loss_contrast"].squeeze()
        torch.testing.assert_close(outputs.contrastive, expected, atol=1e-10, rtol=1e-10)


# What holds for every autoencoder


@both
def test_without_the_contrastive_term_it_is_the_masked_autoencoder(model_type):
    objective = VicMae(build(model_type), contrastive_weight=0.0, reconstruction_weight=1.0, **SMALL)
    pixel_values, noise = draw_pairs()
    loss = objective(pixel_values, noise).loss
    loss.backward()
    alone = build(model_type)
    images, noises = (torch.cat([values[:, 0], values[:, 1]]) for values in (pixel_values, noise))
    expected = alone(images, noise=noises).loss
    expected.backward()
    assert torch.equal(loss, expected)
    for (name, parameter), (_, other) in zip(
        objective.autoencoder.named_parameters(), alone.named_parameters(), strict=True
    ):
        if other.grad is not None:
            assert torch.equal(parameter.grad, other.grad), name


@both
def test_the_order_of_the_views_does_not_matter(model_type):
    objective = VicMae(build(model_type), contrastive_weight=0.5, **SMALL).double()
    pixel_values, noise = (values.double() for values in draw_pairs())
    outputs, swapped = objective(pixel_values, noise), objective(pixel_values.flip(1), noise.flip(1))
    torch.testing.assert_close(outputs.to_tuple(), swapped.to_tuple())


@both
def test_it_starts_near_chance(model_type):
    objective = VicMae(build(model_type))
    outputs = objective(*draw_pairs(32))
    assert outputs.chance.item() == pytest.approx(math.log(63))
    assert outputs.contrastive.item() == pytest.approx(math.log(63), abs=0.8)
    expected = 0.03 * outputs.contrastive + 0.97 * outputs.reconstruction
    torch.testing.assert_close(outputs.loss.detach(), expected)


@both
def test_every_trained_weight_gets_a_gradient(model_type):
    objective = VicMae(build(model_type), **SMALL)
    objective(*draw_pairs()).loss.backward()
    missing = [name for name, value in objective.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing


def test_masks_are_drawn_where_none_are_given():
    objective = VicMae(build("crate_mae"), **SMALL).eval()
    pixel_values, _ = draw_pairs()
    losses = [objective(pixel_values).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]


def test_the_contrastive_weight_rises():
    objective = VicMae(build("crate_mae"), contrastive_weight=0.4, contrastive_rise=0.5, **SMALL)
    weights = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        objective.progress.fill_(progress)
        weights.append(float(objective.current_contrastive_weight()))
    assert weights == pytest.approx([0.0, 0.2, 0.4, 0.4])
    assert VicMae(build("crate_mae"), contrastive_weight=0.4, **SMALL).current_contrastive_weight() == 0.4


def test_batch_norms_are_synchronised_on_request():
    kinds = [
        {type(module) for module in VicMae(build("crate_mae"), sync_batch_norm=flag, **SMALL).projector}
        for flag in (False, True)
    ]
    assert nn.BatchNorm1d in kinds[0]
    assert nn.SyncBatchNorm in kinds[1]
    assert nn.BatchNorm1d not in kinds[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be positive, got 0.0"),
        ({"contrastive_weight": -1.0}, "`contrastive_weight` must not be negative, got -1.0"),
        ({"reconstruction_weight": math.nan}, "`reconstruction_weight` must not be negative, got nan"),
        ({"projector_size": 0}, "`projector_size` must be positive, got 0"),
        ({"contrastive_rise": 2.0}, r"`contrastive_rise` must lie in \[0, 1\], got 2.0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        VicMae(build("crate_mae"), **arguments)


def test_bad_input():
    with pytest.raises(ValueError, match="`autoencoder` must have a decoder, got CrateMaeModel"):
        VicMae(CrateMaeModel(CrateMaeConfig(**CRATE_MAE)))
    objective = VicMae(build("crate_mae"), **SMALL)
    pixel_values, _ = draw_pairs()
    with pytest.raises(ValueError, match=r"two views of each thing, got \(4, 3, 32, 32\)"):
        objective(pixel_values[:, 0])
    with pytest.raises(ValueError, match="a batch of one pair has nothing to be told from"):
        objective(pixel_values[:1])
    assert objective.eval()(pixel_values[:1]).contrastive == 0


def test_what_is_left_behind_is_kept_for_resuming(tmp_path):
    first, second = (VicMae(build("crate_mae"), **SMALL) for _ in range(2))
    first(*draw_pairs())  # running statistics
    first.save_rest(tmp_path)
    assert read_description(tmp_path) == first.describe()
    assert read_description(tmp_path / "nowhere") == {}
    second.load_rest(tmp_path)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    with pytest.raises(ValueError, match=f"{FILE} is not that of this VicMae"):
        VicMae(build("crate_mae"), projector_size=12).load_rest(tmp_path)
    with pytest.raises(ValueError, match=f"There is no {FILE} in"):
        second.load_rest(tmp_path / "nowhere")


def step(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Gradients of a batch of eight pairs, of which each rank has a part; batch norms are those of the whole."""
    objective = VicMae(build("crate_mae"), contrastive_weight=0.5, reconstruction_weight=0.5, **SMALL).double()
    for module in objective.projector:
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    pixel_values, noise = (values.double().chunk(world_size)[rank] for values in draw_pairs(8))
    model = nn.parallel.DistributedDataParallel(objective) if world_size > 1 else objective
    model(pixel_values, noise).loss.backward()
    return {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one():
    expected = step(0, 1)
    for gradients in run_processes(2, step, 2):
        torch.testing.assert_close(gradients, expected)
