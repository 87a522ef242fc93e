"""The formulas of the plan to scale against measured points: operations, states and activations of small models."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"

from benchmarks import plan
from benchmarks.models import Size, Step
from benchmarks.run import count_operations
from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining
from crate_mae_hf.crate_layers import CrateLayer

ROOT = Path(__file__).parents[1]
NUM_GPUS = 8
SIZES = [Size(48, 2, 3, 32, 8), Size(96, 3, 3, 64, 8), Size(64, 1, 4, 96, 8)]


def configure(size: Size) -> CrateMaeConfig:
    return CrateMaeConfig(
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
    )


def check_operations(size: Size, checkpointing: bool, batch_size: int) -> None:
    step = Step("crate_mae_checkpointed" if checkpointing else "crate_mae", "train", size, torch.float32, "cpu")
    step.set_batch_size(batch_size)
    expected = batch_size * plan.image_operations(configure(size), checkpointing)
    assert expected + plan.step_operations(configure(size), checkpointing) == count_operations(step)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_operations_are_those_counted(size, checkpointing):
    check_operations(size, checkpointing, batch_size=5)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_of_the_base_size_are_those_counted(checkpointing):
    check_operations(Size(), checkpointing, batch_size=4)


@pytest.fixture
def ranks() -> Iterator[None]:
    """This process as the first of eight, whose messages go nowhere: what it holds is what it would hold."""
    init_process_group("fake", rank=0, world_size=NUM_GPUS, store=HashStore())
    yield
    destroy_process_group()


def shard(size: Size) -> CrateMaeForPreTraining:
    """A model as accelerate shards it with `examples/recipes/fsdp.yaml`."""
    model = CrateMaeForPreTraining(configure(size)).train()
    options = {
        "mesh": init_device_mesh("cpu", (NUM_GPUS,)),
        "mp_policy": MixedPrecisionPolicy(*[torch.bfloat16] * 3),
    }
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, **options)
    fully_shard(model, **options)
    return model


def kept_bytes(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """A function's value, and the bytes that wait for its backward; what FSDP2 has freed by then counts nothing."""
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function()
    return output, sum(storage.nbytes() for storage in storages.values())


def loss(model: CrateMaeForPreTraining, batch_size: int) -> torch.Tensor:
    height, width = model.patch_grid.image_size
    return model(torch.zeros(batch_size, 3, height, width), return_logits=False).loss


def line(measure: Callable[[int], int]) -> tuple[float, float]:
    """Bytes of an image, and of none, from batches of 4 and 12."""
    few, many = measure(4), measure(12)
    return (many - few) / 8, few - (many - few) / 2


@pytest.mark.parametrize("size", SIZES)
def test_states_are_those_of_a_sharded_step(size, ranks):
    model = shard(size)
    optimizer = torch.optim.AdamW(model.parameters())
    loss(model, batch_size=2).backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    held = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *states]
    assert sum(tensor.to_local().nbytes for tensor in held) == plan.state_bytes(configure(size), NUM_GPUS)


def test_states_of_one_gpu():
    model = CrateMaeForPreTraining(configure(SIZES[0]))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3, 32, 32)).loss.backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    held = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *states]
    trained = [tensor for tensor in held if tensor is not None]
    assert sum(tensor.nbytes for tensor in trained) == plan.state_bytes(configure(SIZES[0]))


# Within 2 %: on a CPU norms keep their two numbers in bfloat16, on CUDA in float32; masks and indices are left out.
@pytest.mark.parametrize("size", SIZES[1:])
def test_activations_are_those_kept_for_the_backward(size, ranks):
    config = configure(size)
    image, step = line(lambda batch_size: kept_bytes(lambda: loss(shard(size), batch_size))[1])
    assert plan.image_bytes(config) == pytest.approx(image, rel=0.02)
    assert plan.step_bytes(config) == pytest.approx(step, rel=0.02)


@pytest.mark.parametrize("size", SIZES[1:])
def test_activations_with_checkpointing(size, ranks):
    config = configure(size)

    def keep_inputs(batch_size: int) -> int:
        model = shard(size)
        model.activation_checkpointing_enable()
        return kept_bytes(lambda: loss(model, batch_size))[1]

    def keep_layer(batch_size: int) -> int:
        """Of an encoder layer that is computed again, without its input."""
        layer = CrateMaeForPreTraining(config).crate_mae.layers[0].bfloat16()
        tokens = torch.zeros(batch_size, size.num_patches + 1, size.hidden_size, dtype=torch.bfloat16)
        return kept_bytes(lambda: layer(tokens.requires_grad_()))[1] - tokens.nbytes

    (image, step), (layer_image, layer_step) = line(keep_inputs), line(keep_layer)
    weights = sum(weight.numel() * 2 for name, weight in CrateLayer(config).named_parameters() if "bias" not in name)
    assert plan.image_bytes(config, checkpointing=True) == pytest.approx(image + layer_image, rel=0.02)
    assert plan.step_bytes(config, checkpointing=True) == pytest.approx(step + layer_step - weights, rel=0.05)


def test_time_is_that_of_a_step():
    """Of a device that is this one: its peak rate times its utilisation is what the step reached."""
    step = Step("crate_mae", "train", SIZES[1], torch.float32, "cpu")
    step.set_batch_size(16)
    operations = count_operations(step)
    start = time.perf_counter()
    step.forward_backward()
    seconds = time.perf_counter() - start
    rate = plan.image_rate(2 * operations / seconds, 0.5, plan.image_operations(configure(SIZES[1])))
    assert rate == pytest.approx(16 / seconds, rel=0.02)  # folding the dictionaries is left out
    assert plan.gpu_hours(3, rate, num_images=1600) == pytest.approx(300 * seconds / 3600, rel=0.02)
    assert plan.reached_utilization(
        2 * operations / seconds, rate, plan.image_operations(configure(SIZES[1]))
    ) == pytest.approx(0.5)


def test_document_has_the_tables(tmp_path, capsys):
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python -m benchmarks.plan(.*)$", page, re.MULTILINE)
    plan.main([*command.split(), "--output_dir", str(tmp_path)])
    text = (tmp_path / "plan.md").read_text()
    assert text in capsys.readouterr().out
    tables = text.split("\n\n")
    assert len(tables) == 4
    for table in tables:
        assert table.strip() in page
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["time"][0]["GPU hours"] > record["time"][1]["GPU hours"] > 0
    with pytest.raises(SystemExit):  # nothing is written over
        plan.main(["--output_dir", str(tmp_path)])
    assert "holds results already" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--num_gpus", "0"], ["--batch_size", "0"], ["--images_per_core", "nan"]])
def test_what_nothing_can_be_planned_for_is_refused(flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        plan.main([*flags, "--output_dir", str(tmp_path)])
    assert f"`{flags[0]}` must be" in capsys.readouterr().err


def test_defaults_are_those_of_the_recipe_and_the_benchmark():
    defaults = plan.parse_args([])
    recipe = yaml.safe_load((ROOT / "examples/recipes/imagenet_base.yaml").read_text())
    assert defaults.epochs == recipe["num_train_epochs"]
    assert defaults.workers == recipe["dataloader_num_workers"]
    assert recipe["per_device_train_batch_size"] in defaults.batch_size
    assert CrateMaeConfig.from_size(recipe["model_size"]).mask_ratio == recipe["mask_ratio"]
    table = (ROOT / "benchmarks/README.md").read_text()
    assert re.findall(r"^\| as it is \| (\d+) ", table, re.MULTILINE) == [str(defaults.images_per_core)]
