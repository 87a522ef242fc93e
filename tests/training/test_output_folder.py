"""The output folder of a run, with checkpoints as Trainer writes them."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.training.arguments import ScriptTrainingArguments
from crate_mae_hf.training.output_folder import LOCK, OWNER, find_checkpoint, lock_folder, move_previous, open_run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """What Trainer writes in a step."""
    from crate_mae_hf import CrateMaeConfig

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    model = CrateMaeForPreTraining(CrateMaeConfig(**sizes, decoder_num_hidden_layers=1))
    settings = {"max_steps": 1, "save_steps": 1, "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    args = ScriptTrainingArguments(str(tmp_path_factory.mktemp("run")), **settings)
    Trainer(model, args, train_dataset=[{"pixel_values": torch.zeros(3, 16, 16)}] * 8).train()
    return Path(args.output_dir) / "checkpoint-1"


@pytest.fixture
def arguments(tmp_path):
    return lambda **changes: ScriptTrainingArguments(str(tmp_path / "out"), use_cpu=True, **changes)


@pytest.fixture
def output(tmp_path, checkpoint) -> Path:
    """An output folder with the checkpoints 3 and 12."""
    for step in (3, 12):
        shutil.copytree(checkpoint, tmp_path / "out" / f"checkpoint-{step}")
    return tmp_path / "out"


def test_a_full_output_folder_is_kept(arguments, output, tmp_path):
    with pytest.raises(ValueError, match=r"is not empty.*--resume_from_checkpoint.*--overwrite_output_dir"):
        find_checkpoint(arguments())
    assert find_checkpoint(arguments(overwrite_output_dir=True)) is None
    for word in ("true", "auto"):
        assert find_checkpoint(arguments(resume_from_checkpoint=word)) == output / "checkpoint-12"
    third = str(output / "checkpoint-3")
    assert find_checkpoint(arguments(resume_from_checkpoint=third)) == Path(third)
    with pytest.raises(ValueError, match=r"there is no checkpoint .*checkpoint-4"):
        find_checkpoint(arguments(resume_from_checkpoint=str(output / "checkpoint-4")))
    shutil.copytree(third, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is not empty"):  # to go on from elsewhere is no leave to replace this one
        find_checkpoint(arguments(resume_from_checkpoint=str(tmp_path / "elsewhere")))


def test_a_folder_without_checkpoints(arguments, tmp_path):
    (tmp_path / "out").mkdir()
    assert find_checkpoint(arguments()) is None
    assert find_checkpoint(arguments(resume_from_checkpoint="auto")) is None
    with pytest.raises(ValueError, match="there is no complete checkpoint in"):
        find_checkpoint(arguments(resume_from_checkpoint="true"))
    (tmp_path / "out" / "checkpoint-5").mkdir()
    assert find_checkpoint(arguments(resume_from_checkpoint="auto")) is None
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        find_checkpoint(arguments(resume_from_checkpoint="auto"))


def cut(path: Path, length: int = -1) -> None:
    path.write_bytes(path.read_bytes()[:length])


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(bytes(64), b"\xff" * 64, 1))


@pytest.mark.parametrize(
    ("name", "break_file", "reason"),
    [
        ("model.safetensors", cut, "model.safetensors is not complete"),
        ("model.safetensors", lambda path: cut(path, 0), "model.safetensors is not complete"),
        ("model.safetensors", Path.unlink, "it lacks weights"),
        ("optimizer.pt", cut, "optimizer.pt is not complete"),
        ("optimizer.pt", change, "optimizer.pt is not complete: the checksum"),
        ("optimizer.pt", Path.unlink, "it lacks state of the optimizer"),
        ("scheduler.pt", lambda path: cut(path, 0), "scheduler.pt is not complete"),
        ("scheduler.pt", Path.unlink, "it lacks state of the learning rate"),
        ("rng_state.pth", lambda path: cut(path, 100), "rng_state.pth is not complete"),
        ("rng_state.pth", Path.unlink, "it lacks state of the random numbers"),
        ("trainer_state.json", lambda path: cut(path, -9), "trainer_state.json is not complete"),
        ("trainer_state.json", Path.unlink, "it lacks trainer_state.json"),
    ],
)
def test_a_checkpoint_that_is_not_complete(arguments, output, caplog, name, break_file, reason):
    break_file(output / "checkpoint-12" / name)
    assert find_checkpoint(arguments(resume_from_checkpoint="true")) == output / "checkpoint-3"
    assert f"checkpoint-12 is passed over: {reason}" in caplog.text
    with pytest.raises(ValueError, match=r"a run cannot go on from .*checkpoint-12: .*`--model_name_or_path`"):
        find_checkpoint(arguments(resume_from_checkpoint=str(output / "checkpoint-12")))


def test_weights_in_shards_are_all_there(arguments, output, config):
    folder = output / "checkpoint-12"
    (folder / "model.safetensors").unlink()
    CrateMaeForPreTraining(config).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert find_checkpoint(arguments(resume_from_checkpoint="true")) == folder
    next(folder.glob("model-*.safetensors")).unlink()
    assert find_checkpoint(arguments(resume_from_checkpoint="true")) == output / "checkpoint-3"


def test_shards_of_fsdp_are_read(arguments, output):
    folder = output / "checkpoint-12"
    for name, old in (("pytorch_model_fsdp_0", "model.safetensors"), ("optimizer_0", "optimizer.pt")):
        (folder / old).unlink()
        writer = torch.distributed.checkpoint.FileSystemWriter(folder / name)
        with pytest.warns(UserWarning, match="single process"):
            torch.distributed.checkpoint.save({"weight": torch.ones(1000)}, storage_writer=writer)
    assert find_checkpoint(arguments(resume_from_checkpoint="true")) == folder
    (shard,) = (folder / "optimizer_0").glob("*.distcp")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert find_checkpoint(arguments(resume_from_checkpoint="true")) == output / "checkpoint-3"
    shard.write_bytes(content)
    (folder / "pytorch_model_fsdp_0" / ".metadata").unlink()
    assert find_checkpoint(arguments(resume_from_checkpoint="true")) == output / "checkpoint-3"


def test_what_a_run_does_not_go_on_from_is_moved(output):
    (output / "all_results.json").write_text("{}")
    (output / "mine.txt").touch()
    move_previous(output, str(output / "checkpoint-12"))
    assert not (output / "_previous_runs").exists()
    move_previous(output, str(output / "checkpoint-3"))
    assert {path.name for path in output.iterdir()} == {
        "checkpoint-3",
        "all_results.json",
        "mine.txt",
        "_previous_runs",
    }
    move_previous(output, None)
    assert {path.name for path in output.iterdir()} == {"mine.txt", "_previous_runs"}
    moved = output / "_previous_runs"
    assert {path.name for path in (moved / "1").iterdir()} == {"checkpoint-12"}
    assert {path.name for path in (moved / "2").iterdir()} == {"checkpoint-3", "all_results.json"}
    assert (moved / "1" / "checkpoint-12" / "model.safetensors").is_file()


def test_one_run_at_a_time(arguments, tmp_path):
    with open_run(arguments()) as checkpoint:
        assert checkpoint is None
        with (
            pytest.raises(ValueError, match=rf"is in use by another run, process {os.getpid()} on "),
            open_run(arguments(resume_from_checkpoint="auto")),
        ):
            pass
    with open_run(arguments()):  # the lock is no result of a run
        assert {path.name for path in (tmp_path / "out").iterdir()} == {LOCK, OWNER}


HOLDER = """
import sys, time, torch
from pathlib import Path
from crate_mae_hf.training.output_folder import lock_folder
with lock_folder(Path(sys.argv[1])):
    loader = torch.utils.data.DataLoader(range(100), num_workers=1, multiprocessing_context="fork")
    batches = iter(loader)
    next(batches)
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_lock_goes_with_its_process(tmp_path):
    # Even where data loader workers, which notice after seconds, outlive it.
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"process {process.pid}"), lock_folder(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    start = time.monotonic()
    with lock_folder(tmp_path):
        assert time.monotonic() - start < 1


def test_a_folder_that_cannot_be_written_to(arguments, tmp_path):
    (tmp_path / "out").touch()
    with (
        pytest.raises(ValueError, match=r"`output_dir` .*out cannot be written to: (File exists|Not a dir)"),
        open_run(arguments()),
    ):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(arguments, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="cannot be written to: Permission denied"), open_run(arguments()):
        pass


@pytest.mark.parametrize("word", [None, "true", "auto"])
def test_an_interruption_says_how_to_go_on(arguments, output, capsys, word):
    command = "same command goes" if word == "auto" else "same command with `--resume_from_checkpoint true` goes"
    (output / "checkpoint-12" / "trainer_state.json").unlink()
    args = arguments(resume_from_checkpoint=word, overwrite_output_dir=word is None)
    with pytest.raises(SystemExit) as stopped, open_run(args):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert f"Interrupted. The {command} on from {output / 'checkpoint-3'}.\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_ends_in_one_line(arguments, output, error):
    args = arguments(resume_from_checkpoint="true")
    message = r"^The disk is full \(.*\), the run in .*: make room\. .*goes on from .*checkpoint-12"
    with pytest.raises(ValueError, match=message), open_run(args):
        raise error
    with pytest.raises(ZeroDivisionError), open_run(args):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="else"), open_run(args):
        raise RuntimeError("something else")
