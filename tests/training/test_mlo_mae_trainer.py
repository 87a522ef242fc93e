"""The cycle of MLO-MAE: whose weights each level changes, that it is the official one, and that runs resume exactly."""

from types import SimpleNamespace

import pytest
import torch
from official_mlo_mae import expected_weights, official_vit, pick
from official_vic_mae import SMALL_VIT_MAE
from transformers import AutoModelForPreTraining, TrainerCallback, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

from crate_mae_hf import CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.adapters import fill_vit_mae, freeze_positions
from crate_mae_hf.hub import check_folder, create_model_card
from crate_mae_hf.hub.push import NOT_PUSHED
from crate_mae_hf.objectives.mlo_mae import MASKING, MaskingNetwork, MloMae
from crate_mae_hf.objectives.objective import FILE
from crate_mae_hf.training.mask_pictures import MaskPictures
from crate_mae_hf.training.mlo_mae_trainer import LEVELS, MloMaeTrainer, check_arguments
from crate_mae_hf.training.trainer import NonFiniteLossError


class Images(torch.utils.data.Dataset):
    """Twenty images by index or by (epoch, index), of which the epoch changes the light."""

    def __init__(self, with_labels: bool) -> None:
        generator = torch.Generator().manual_seed(int(with_labels))
        self.images = torch.randn(20, 3, 32, 32, generator=generator)
        self.noise = torch.rand(20, 16, generator=generator)
        self.with_labels = with_labels

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index):
        epoch, index = index if isinstance(index, tuple) else (0, index)
        pixel_values = self.images[index] + 0.1 * epoch
        return {
            "pixel_values": pixel_values,
            **({"labels": index % 3} if self.with_labels else {"noise": self.noise[index]}),
        }


@pytest.fixture
def build(config, tmp_path):
    def build(name="run", model_type="crate_mae", objective=None, data=None, rates=None, **arguments):
        torch.manual_seed(0)
        if model_type == "crate_mae":
            autoencoder = CrateMaeForPreTraining(config)
        else:
            autoencoder = ViTMAEForPreTraining(ViTMAEConfig(**SMALL_VIT_MAE))
            fill_vit_mae(autoencoder)
            freeze_positions(autoencoder)
        settings = {
            "output_dir": str(tmp_path / name),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 10,
            "max_steps": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        data = {name: Images(True) for name in ("finetune_dataset", "validation_dataset")} if data is None else data
        return MloMaeTrainer(
            MloMae(autoencoder, 3, **{"mask_hidden_size": 12, **(objective or {})}),
            TrainingArguments(**{**settings, **arguments}),
            train_dataset=Images(False),
            eval_dataset=Images(False),
            processing_class=CrateMaeImageProcessor.from_config(config),
            callbacks=[MaskPictures()],
            **data,
            **(rates or {}),
        )

    return build


@pytest.fixture
def train(build):
    def train(*args, resume=None, **arguments):
        trainer = build(*args, **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def history(trainer, name: str) -> list[float]:
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def changed(trainer, before: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the objective of which a weight has changed."""
    return {name.split(".")[0] for name, value in weights(trainer).items() if not torch.equal(value, before[name])}


# The golden values


class Ordered(torch.utils.data.Dataset):
    """Images in the order of the official cycle."""

    def __init__(self, items: list[dict]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index[1] if isinstance(index, tuple) else index]


@pytest.mark.parametrize("freeze_ranking", [False, True])
def test_a_cycle_is_the_official_one(tmp_path, freeze_ranking):
    objective, metadata, tensors = official_vit(freeze_ranking=freeze_ranking)
    rates = metadata["lr"]

    def items(*names: str) -> Ordered:
        batches = [pick(tensors, f"batch.{name}.") for name in names]
        for batch in batches:
            if "labels" in batch:
                batch["labels"] = batch["labels"].long()
        return Ordered(
            [{key: batch[key][i] for key in batch} for batch in batches for i in range(len(batch["pixel_values"]))]
        )

    class Trainer(MloMaeTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def start_batches(self, cycle: int) -> None:  # batches of five, those of level I are of four
            self.batches = {
                name: iter(torch.utils.data.DataLoader(dataset, batch_size=5))
                for name, dataset in self.datasets.items()
            }

    trainer = Trainer(
        objective,
        TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            optim="sgd",
            learning_rate=rates["pretrain"],
            lr_scheduler_type="constant",
            max_grad_norm=0,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=items("pre_1", "pre_2"),
        finetune_dataset=items("fin_1"),
        validation_dataset=items("val_1"),
        head_learning_rate=rates["finetune"],
        mask_learning_rate=rates["mask"],
    )
    trainer.train()
    expected = expected_weights(tensors, "expected.cycle")
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-8, rtol=1e-6, msg=name)
    losses = [*history(trainer, "loss"), *history(trainer, "finetune_loss"), *history(trainer, "validation_loss")]
    torch.testing.assert_close(torch.tensor(losses), tensors["expected.cycle.losses"].float(), atol=1e-4, rtol=1e-4)


# Who owns what


@pytest.mark.parametrize("model_type", ["crate_mae", "vit_mae"])
@pytest.mark.parametrize("owner", ["autoencoder", "head", "masking"])
def test_each_level_changes_what_it_owns(build, model_type, owner):
    rates = {name: 1e-3 if name == owner else 0.0 for name in ("autoencoder", "head", "masking")}
    trainer = build(
        model_type=model_type,
        max_steps=2,
        lr_scheduler_type="constant",
        learning_rate=rates["autoencoder"],
        rates={"head_learning_rate": rates["head"], "mask_learning_rate": rates["masking"]},
    )
    before = weights(trainer)
    trainer.train()
    assert changed(trainer, before) == {owner}
    assert not any(
        weight.requires_grad for weight in (*trainer.model.head.parameters(), *trainer.model.masking.parameters())
    )
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_gradients_of_the_first_level_alone_are_clipped(build):
    """What level I would have for the masking network must not count towards the norm."""
    trainer = build(max_steps=1)
    trainer.create_optimizer()
    owned = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert owned == {id(weight) for weight in trainer.model.autoencoder.parameters() if weight.requires_grad}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups if group["params"]} == {0.0}
    seen = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            seen.extend(name for name, weight in trainer.model.named_parameters() if weight.grad is not None)

    trainer.add_callback(Look())
    trainer.train()
    assert seen
    assert all(name.startswith("autoencoder.") for name in seen)


def test_upper_levels_come_after_every_second_step(build):
    trainer, order = build(max_steps=5), []
    for name in ("end_cycle", "training_step"):
        method = getattr(trainer, name)
        setattr(trainer, name, lambda *args, name=name, method=method: (order.append(name), method(*args))[1])
    before = weights(trainer)
    trainer.train()
    assert order == ["training_step", "training_step", "end_cycle"] * 2 + ["training_step"]
    assert changed(trainer, before) == {"autoencoder", "head", "masking"}


@pytest.mark.parametrize("masks", ["random", "frozen"])
def test_there_is_one_level_without_learned_masks(build, masks):
    trainer = build(objective={"masks": masks}, data={})
    before = weights(trainer)
    trainer.train()
    assert changed(trainer, before) == {"autoencoder"}
    assert not history(trainer, "finetune_loss")


def test_all_weights_decay(build):
    trainer = build()
    assert len(trainer.get_decay_parameter_names(trainer.model)) == len(list(trainer.model.named_parameters()))


def test_schedules_have_one_shape(train):
    trainer = train(warmup_steps=4, learning_rate=0.01, rates={"head_learning_rate": 0.1, "mask_learning_rate": 0.2})
    first, head, masking = (
        history(trainer, name) for name in ("learning_rate", "head_learning_rate", "masking_learning_rate")
    )
    # The log has the rate of the step before, and of the upper levels that of the next.
    assert head[1::2] == pytest.approx([0.05, 0.1, 0.05, 0.0])
    assert masking == pytest.approx([2 * rate for rate in head])
    assert max(first) == pytest.approx(0.01)


# The log, the pictures, the folder


def test_losses_of_each_level_are_logged(train, tmp_path):
    trainer = train(eval_strategy="steps", eval_steps=4, logging_steps=4)
    for name in ("loss", "reconstruction", "mask_entropy", "finetune_loss", "validation_loss", "mask_grad_norm"):
        assert len(history(trainer, name)) == 2, name
    assert history(trainer, "finetune_loss")[0] == pytest.approx(1.1, abs=0.6)
    assert all(0 <= value <= 1 for value in history(trainer, "eval_mask_entropy"))
    assert len(history(trainer, "eval_reconstruction")) == 2
    assert {path.name for path in (tmp_path / "run" / "masks").iterdir()} == {"step_000004.png", "step_000008.png"}


def test_what_is_saved_is_the_autoencoder(train, tmp_path):
    trainer = train()
    trainer.save_model()
    folder = tmp_path / "run"
    check_folder(folder)
    assert {FILE, MASKING, "masks/*"} <= set(NOT_PUSHED)
    loaded = AutoModelForPreTraining.from_pretrained(folder)
    for name, value in trainer.model.autoencoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    masking = MaskingNetwork.load(folder)
    assert torch.equal(masking.hidden.weight, trainer.model.masking.hidden.weight)
    card = str(create_model_card(folder))
    assert "| objective | [MLO-MAE](https://arxiv.org/abs/2402.18128)" in card
    assert "pre-trained with the help of labels." in card
    assert "| labels | of 3 classes, by which the masks were learned |" in card


# Resuming


@pytest.mark.parametrize("model_type", ["crate_mae", "vit_mae"])
@pytest.mark.parametrize("step", [3, 4, 5])  # in the middle of a cycle, and at the end of an epoch
def test_resuming_gives_the_unbroken_run(train, tmp_path, model_type, step):
    settings = {"model_type": model_type, "objective": {"score_noise": 0.1}, "lr_scheduler_type": "cosine"}
    whole = train("whole", **settings, save_strategy="steps", save_steps=step)
    resumed = train("resumed", **settings, resume=str(tmp_path / "whole" / f"checkpoint-{step}"))
    torch.testing.assert_close(weights(resumed), weights(whole), atol=0, rtol=0)
    for name in ("loss", "mask_entropy", "finetune_loss", "validation_loss", "mask_grad_norm", "masking_learning_rate"):
        assert history(resumed, name) == history(whole, name)


def test_data_loader_workers_change_nothing(train):
    plain, with_workers = train("plain", max_steps=4), train("workers", max_steps=4, dataloader_num_workers=1)
    torch.testing.assert_close(weights(with_workers), weights(plain), atol=0, rtol=0)


def test_a_checkpoint_of_another_kind_of_masks_is_refused(train, build, tmp_path):
    train("learned", save_strategy="steps", save_steps=2, max_steps=2)
    checkpoint = tmp_path / "learned" / "checkpoint-2"
    with pytest.raises(ValueError, match="has head, masking, and this run trains nothing: `masks` must be the same"):
        build(objective={"masks": "frozen"}).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / LEVELS).unlink()
    with pytest.raises(ValueError, match="has nothing, and this run trains head, masking"):
        build().train(resume_from_checkpoint=str(checkpoint))


# What goes with it, and what does not


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"world_size": 2}, "several processes"),
        ({"fsdp": ["full_shard"]}, "FSDP"),
        ({"deepspeed": "config.json"}, "DeepSpeed"),
        ({"torch_compile": True}, "`torch_compile`"),
        ({"fp16": True}, "`fp16`"),
    ],
)
def test_what_differences_cannot_be_taken_with(arguments, name):
    args = {"world_size": 1, "fsdp": [], "deepspeed": None, "torch_compile": False, "fp16": False}
    check_arguments(SimpleNamespace(**args))
    with pytest.raises(ValueError, match=f"for its hypergradient: it cannot use {name}"):
        check_arguments(SimpleNamespace(**{**args, **arguments}))


def test_half_precision_is_refused(config, tmp_path):
    objective = MloMae(CrateMaeForPreTraining(config).bfloat16(), 3)
    with pytest.raises(ValueError, match=r"its weights must be in float32, got torch.bfloat16"):
        MloMaeTrainer(objective, TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_labelled_images_are_needed(build):
    with pytest.raises(ValueError, match="`finetune_dataset` and `validation_dataset` are needed"):
        build(data={}).train()


def test_bf16_is_for_the_first_level_alone(build):
    trainer = build(bf16=True, max_steps=2)
    seen, features = [], trainer.model.features
    trainer.model.features = lambda images: seen.append(features(images).dtype) or features(images)
    trainer.train()
    assert set(seen) == {torch.float32}
    assert torch.isfinite(torch.tensor(history(trainer, "mask_grad_norm"))).all()


def test_activation_checkpointing_changes_nothing(train):
    plain, checkpointed = (train(str(on), max_steps=4, activation_checkpointing=on) for on in (False, True))
    assert checkpointed.model.autoencoder.is_activation_checkpointing
    torch.testing.assert_close(weights(checkpointed), weights(plain), atol=1e-6, rtol=1e-4)


def test_a_level_that_is_not_finite_stops_the_run(build):
    trainer = build()
    trainer.model.head[2].weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="Level II became nan after step 2"):
        trainer.train()
