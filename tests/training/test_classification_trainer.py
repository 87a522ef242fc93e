import math

import pytest
import torch
from transformers import TrainingArguments

from crate_mae_hf import CrateAlphaConfig, CrateAlphaForImageClassification, CrateMaeForImageClassification
from crate_mae_hf.training.classification_trainer import ClassificationTrainer, freeze_encoder


class Images(torch.utils.data.Dataset):
    """Sixteen images of three classes; labels are classes or probabilities."""

    def __init__(self, soft: bool = False):
        generator = torch.Generator().manual_seed(0)
        self.pixel_values = torch.randn(16, 3, 32, 32, generator=generator)
        self.labels = torch.arange(16) % 3
        if soft:
            self.labels = torch.rand(16, 3, generator=generator).softmax(dim=1)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


class Recorder(ClassificationTrainer):
    """Keeps each step's learning rates, gradient norms and whether the encoder was in training mode."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rates, self.modes = [], []

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        self.rates.append({names[p]: g["lr"] for g in self.optimizer.param_groups for p in g["params"]})
        self.modes.append((self.model.crate_mae.layers[0].training, self.model.classifier.training))
        return loss


@pytest.fixture
def train(config, tmp_path):
    """Train a fresh model; return the trainer."""

    def train(dataset=None, resume=None, name="run", frozen=False, layer_decay=1.0, **arguments):
        torch.manual_seed(0)
        config.num_labels = 3
        model = CrateMaeForImageClassification(config)
        if frozen:
            freeze_encoder(model)
        settings = {
            "output_dir": str(tmp_path / name),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        dataset = dataset or Images()
        trainer = Recorder(
            model,
            TrainingArguments(**{**settings, **arguments}),
            train_dataset=dataset,
            eval_dataset=Images(),
            layer_decay=layer_decay,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def weights(trainer) -> dict[str, torch.Tensor]:
    return trainer.model.state_dict()


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_learning_rates_in_training_under_cosine_with_warm_up(train, optim):
    trainer = train(
        layer_decay=0.5, lr_scheduler_type="cosine", warmup_steps=2, optim=optim, weight_decay=0.1, max_steps=8
    )
    schedule = [step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 6)) for step in range(8)]
    exponents = {
        "classifier.weight": 0,
        "crate_mae.layernorm.weight": 0,
        "crate_mae.layers.2.mssa.subspace_proj.weight": 1,
        "crate_mae.layers.1.ista.dictionary": 2,
        "crate_mae.layers.0.layernorm_after.bias": 3,
        "crate_mae.embeddings.cls_token": 4,
    }
    assert len(trainer.rates) == 8
    for factor, rates in zip(schedule, trainer.rates, strict=True):
        for name, exponent in exponents.items():
            assert rates[name] == pytest.approx(1e-2 * 0.5**exponent * factor), name
    logged = [float(entry["learning_rate"]) for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged[1] == pytest.approx(1e-2 * schedule[1], rel=1e-3)  # the head's
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    parameters = dict(trainer.model.named_parameters())
    assert decay[id(parameters["crate_mae.layers.1.ista.dictionary"])] == 0.1
    assert decay[id(parameters["crate_mae.embeddings.cls_token"])] == 0.0


def test_a_frozen_encoder_stays_as_it_is(train, config):
    config.hidden_dropout_prob = 0.5
    trainer = train(frozen=True, layer_decay=0.5, weight_decay=0.1)
    assert trainer.modes == [(False, True)] * 8
    torch.manual_seed(0)
    before = CrateMaeForImageClassification(config).state_dict()
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name]) is name.startswith("crate_mae."), name
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    optimised = {names[p] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {"classifier.weight", "classifier.bias"}
    assert train(name="whole").modes == [(True, True)] * 8


def test_a_model_without_an_encoder_cannot_be_frozen():
    class Bare(CrateMaeForImageClassification):
        base_model_prefix = ""

    with pytest.raises(ValueError, match="`freeze_encoder`: Bare does not tell its encoder"):
        freeze_encoder(Bare.__new__(Bare))


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_cross_entropy(train, soft):
    dataset = Images(soft)
    trainer = train(dataset, label_smoothing_factor=0.1, learning_rate=0.0, num_train_epochs=1)
    with torch.no_grad():
        log_probs = trainer.model.eval()(dataset.pixel_values).logits.log_softmax(dim=1)
    hard = torch.nn.functional.one_hot(torch.arange(16) % 3, 3).float()
    target = 0.9 * (dataset.labels if soft else hard) + 0.1 / 3
    logged = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert sum(logged) / 4 == pytest.approx(-(target * log_probs).sum(dim=1).mean().item(), rel=1e-3)
    plain = -(hard * log_probs).sum(dim=1).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-4)  # no smoothing


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_accumulation_equals_a_larger_batch(train, soft):
    accumulated = train(Images(soft), gradient_accumulation_steps=4, name="accumulated", optim="sgd")
    at_once = train(Images(soft), per_device_train_batch_size=16, name="at_once", optim="sgd")
    torch.testing.assert_close(weights(accumulated), weights(at_once), atol=1e-6, rtol=1e-5)


def test_resuming_gives_the_unbroken_run(train, tmp_path, config):
    config.drop_path_rate = 0.5
    whole = train(name="whole", layer_decay=0.7, save_strategy="steps", save_steps=3, lr_scheduler_type="cosine")
    resume = str(tmp_path / "whole" / "checkpoint-3")
    resumed = train(name="resumed", layer_decay=0.7, resume=resume, lr_scheduler_type="cosine")
    torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0)
    assert resumed.rates == whole.rates[3:]


@pytest.mark.parametrize("value", [0, 1.5])
def test_layer_decay_has_a_range(train, value):
    with pytest.raises(ValueError, match=rf"`layer_decay` must lie in \(0, 1\], got {value}"):
        train(layer_decay=value)


def test_an_alpha_decays_as_it_was_trained(tmp_path):
    config = CrateAlphaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8, num_labels=3
    )
    model = CrateAlphaForImageClassification(config)
    trainer = ClassificationTrainer(model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    assert set(trainer.get_decay_parameter_names(model)) == {
        "crate_alpha.embeddings.patch_embeddings.projection.weight",
        "crate_alpha.layers.0.mssa.subspace_proj.weight",
        "crate_alpha.layers.0.mssa.o_proj.weight",
        "classifier.1.weight",
    }
