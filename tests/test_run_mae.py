"""examples/run_mae.py as a user runs it: on a folder of images, with a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from runs import logged, write_noise
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "run_mae.py"
SETTINGS = {
    "config_overrides": "image_size=16,patch_size=4,hidden_size=16,num_attention_heads=2,num_hidden_layers=1",
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "base_learning_rate": 0.064,
    "logging_steps": 1,
    "dataloader_pin_memory": False,
    "use_cpu": True,
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe for twenty small images."""
    for number in range(20):
        write_noise(tmp_path / "images" / f"{number:02}.png", np.random.default_rng(number))
    settings = {**SETTINGS, "train_dir": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(run_script, recipe, tmp_path):
    return lambda output, *flags: run_script(SCRIPT, recipe, "--output_dir", tmp_path / output, *flags)


@pytest.fixture
def launch(recipe, tmp_path):
    """Run the script in a process of its own, or in several by a launcher; fail with what it printed."""

    def launch(output, *flags, launcher=(sys.executable,)):
        command = [*launcher, str(SCRIPT), str(recipe), "--output_dir", str(tmp_path / output), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-8000:]

    return launch


def test_pre_training_from_a_folder_of_images(run, tmp_path):
    run("out", "--train_val_split", "0.2", "--save_strategy", "epoch", "--eval_strategy", "epoch")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["max_steps"] == 2 * 4
    assert max(float(entry.get("learning_rate", 0)) for entry in state["log_history"]) == pytest.approx(0.064 * 4 / 256)
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert np.isfinite(results["eval_loss"])
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-8"):
        model = AutoModel.from_pretrained(folder)
        with PIL.Image.open(tmp_path / "images" / "00.png") as image:
            inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
        assert model(**inputs).last_hidden_state.shape == (1, 17, 16)


def test_normalising_on_the_device_changes_nothing(run, tmp_path):
    """Images of JPEG, which are decoded in another way, too."""
    for path in sorted((tmp_path / "images").glob("*.png"))[:10]:
        with PIL.Image.open(path) as image:
            image.convert("RGB").save(path.with_suffix(".jpg"))
    statistics = ("--image_mean", "0.2", "0.4", "0.6", "--image_std", "0.1", "0.2", "0.3")
    run("there", "--normalize_on_device", *statistics)
    run("here", *statistics)
    assert logged(tmp_path / "there", "loss") == logged(tmp_path / "here", "loss")
    assert (tmp_path / "there" / "model.safetensors").read_bytes() == (
        tmp_path / "here" / "model.safetensors"
    ).read_bytes()


def test_continue_from_a_checkpoint_with_changes(run, tmp_path):
    run("first")
    changes = ["--model_name_or_path", str(tmp_path / "first"), "--mask_ratio", "0.5", "--norm_pix_loss", "true"]
    run("second", *changes, "--config_overrides", "", "--learning_rate", "0", "--base_learning_rate", "0")
    first, second = (AutoModelForPreTraining.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert (second.config.mask_ratio, second.config.norm_pix_loss, second.config.hidden_size) == (0.5, True, 16)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("name", ["imagenet_base", "cifar10", "fashion_mnist_sample"])
def test_a_folder_wins_over_the_dataset_of_a_recipe(run_script, recipe, tmp_path, caplog, name):
    """The command of the README, on a smaller model."""
    flags = {**SETTINGS, "train_dir": tmp_path / "images", "output_dir": tmp_path / "out", "cache_dir": tmp_path / "c"}
    flags |= {"model_size": "tiny", "bf16": False, "num_train_epochs": 1, "dataloader_num_workers": 0}
    flags |= {"dataloader_persistent_workers": False, "save_strategy": "no"}
    flags["config_overrides"] += ",decoder_num_hidden_layers=1"
    if name != "imagenet_base":  # these say what the pixels are like
        flags |= {"config_overrides": flags["config_overrides"] + ",num_channels=3"}
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    arguments += ["--image_mean", "0.5", "0.5", "0.5", "--image_std", "0.5", "0.5", "0.5"]
    run_script(SCRIPT, EXAMPLES / "recipes" / f"{name}.yaml", *arguments)
    folder = tmp_path / "images"
    assert f"Training on 17 images of the folder {folder}; evaluating on 3 images of the folder {folder}, held out" in (
        caplog.text
    )
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    steps = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["max_steps"]
    num_images = steps * results["train_samples_per_second"] / results["train_steps_per_second"]
    assert num_images == pytest.approx(17, rel=0.01)


def test_streaming(run, tmp_path):
    run("out", "--streaming", "true", "--max_steps", "3", "--max_eval_samples", "4", "--shuffle_buffer_size", "8")
    assert len(logged(tmp_path / "out", "loss")) == 3


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stream_resumes_to_the_same_weights(run, tmp_path, caplog, workers):
    flags = ["--streaming", "true", "--max_steps", "9", "--max_eval_samples", "4", "--shuffle_buffer_size", "8"]
    flags += ["--dataloader_num_workers", workers, "--save_strategy", "steps", "--save_steps", "2"]
    flags += ["--gradient_accumulation_steps", "2"]  # 72 images, where a pass has 16
    run("whole", *flags)
    for step in (2, 6, 9):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        run(f"from_{step}", *flags, "--resume_from_checkpoint", checkpoint)
        assert logged(tmp_path / f"from_{step}", "loss") == logged(tmp_path / "whole", "loss")
        whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", f"from_{step}"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "the images and draws are not those" not in caplog.text
    run("other", *flags, "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2", "--dataloader_num_workers", 1)
    assert f"`dataloader_num_workers` is 1, and was {workers} when the checkpoint was made" in caplog.text


def test_a_run_that_was_overwritten_is_not_resumed(run, tmp_path):
    saves = ["--save_strategy", "steps", "--save_steps", "2"]
    run("out", "--max_steps", "8", *saves)
    mine = (tmp_path / "out" / "checkpoint-8" / "model.safetensors").read_bytes()
    run("out", "--max_steps", "4", *saves, "--seed", "7", "--overwrite_output_dir")
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert (tmp_path / "out" / "_previous_runs" / "1" / "checkpoint-8" / "model.safetensors").read_bytes() == mine
    run("out", "--max_steps", "5", *saves, "--seed", "7", "--resume_from_checkpoint", "true")
    assert len(logged(tmp_path / "out", "loss")) == 5


def test_a_run_goes_on_by_itself(run, tmp_path):
    flags = ["--save_strategy", "steps", "--save_steps", "2", "--resume_from_checkpoint", "auto"]
    run("out", "--max_steps", "4", *flags)
    run("out", "--max_steps", "6", *flags)
    assert len(logged(tmp_path / "out", "loss")) == 6


def test_an_output_folder_that_cannot_be_used_is_noticed_at_the_start(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^error: `output_dir` .*file/out cannot be written to: Not a directory"):
        run("file/out", "--train_dir", "nowhere")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gradient_accumulation_steps", "0"], "`gradient_accumulation_steps` must be positive, got 0."),
        (["--config_overrides", "image_size=17,patch_size=4"], "`image_size` must be divisible by `patch_size`"),
        (["--config_overrides", "hidden_sise=8"], "`config_overrides` sets hidden_sise"),
        (["--mask_ratio", "1.5"], "`mask_ratio` must lie in [0, 1), got 1.5"),
        (["--image_column_name", "picture"], "`image_column_name`: there is no column 'picture'"),
        (["--train_dir", "nowhere"], "`train_dir`: there is no folder nowhere"),
        (["--train_dir", "a", "--dataset_name", "b"], "`dataset_name` and `train_dir` name images in two ways"),
        (["--resume_from_checkpoint", "true"], "`resume_from_checkpoint`: there is no complete checkpoint"),
        (["--streaming", "true", "--max_eval_samples", "4"], "`max_steps`"),
    ],
)
def test_bad_input_ends_with_one_line(run, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        run("out", *flags)


def test_a_broken_image_ends_with_its_name_and_can_be_skipped(run, tmp_path, caplog):
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    for workers in ("0", "1"):
        with pytest.raises(SystemExit, match=r"^error: Cannot read the image .*broken\.png: "):
            run("out", "--dataloader_num_workers", workers, "--overwrite_output_dir", "true")
    run("out", "--skip_bad_images", "true", "--overwrite_output_dir", "true")
    assert "Left out 1 of" in caplog.text


def test_results_are_not_overwritten(run, tmp_path):
    run("out", "--max_steps", "1")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match="is not empty"):
        run("out")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_losses(launch, recipe, tmp_path):
    flags = [
        "--num_train_epochs",
        "30",
        "--save_strategy",
        "steps",
        "--save_steps",
        "7",
        "--dataloader_num_workers",
        "1",
    ]
    launch("whole", *flags)
    command = [
        sys.executable,
        str(SCRIPT),
        str(recipe),
        "--output_dir",
        str(tmp_path / "killed"),
        *flags,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoint-14" / "trainer_state.json").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "model.safetensors").exists(), "the run was over before the signal"
    launch("killed", *flags, "--resume_from_checkpoint", "true")
    assert logged(tmp_path / "killed", "loss") == logged(tmp_path / "whole", "loss")
    whole, resumed = (AutoModelForPreTraining.from_pretrained(tmp_path / name) for name in ("whole", "killed"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "fsdp"])
def test_two_processes_give_the_losses_of_one(launch, tmp_path, launcher):
    # The launchers are those for GPUs; `use_cpu` in the recipe has the processes meet over gloo.
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num_processes", "2"]
    launchers = {
        "torchrun": [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--master_port", "29511"],
        "accelerate": [
            *accelerate,
            *("--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
            *("--main_process_port", "29512"),
        ],
        "fsdp": [
            *accelerate,
            *("--config_file", str(EXAMPLES / "recipes" / "fsdp.yaml"), "--mixed_precision", "no"),
            *("--main_process_port", "29513"),
        ],
    }
    flags = ["--train_val_split", "0.2", "--num_train_epochs", "4"]
    launch("one", *flags, "--per_device_train_batch_size", "4")
    launch("two", *flags, "--per_device_train_batch_size", "2", launcher=launchers[launcher])
    one, two = logged(tmp_path / "one", "loss"), logged(tmp_path / "two", "loss")
    assert len(one) == 16
    assert two == pytest.approx(one, rel=1e-3)  # the log has four digits; sums are taken in another order
    results = [json.loads((tmp_path / name / "all_results.json").read_text())["eval_loss"] for name in ("one", "two")]
    assert results[1] == pytest.approx(results[0], rel=1e-4)


@pytest.mark.slow
def test_quick_demo(tmp_path):
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--quick", "--output_dir", str(tmp_path / "demo")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert set(metrics["masked_error"]) == {"model", "mean_patch", "inpainting"}
    assert set(metrics["probe_accuracy"]) == {"pre-trained", "random weights", "raw pixels"}
    for name in ("reconstruction.png", "loss_curve.png"):
        with PIL.Image.open(tmp_path / "demo" / name) as picture:
            assert picture.size[0] > 500
    assert f'AutoModel.from_pretrained("{tmp_path / "demo"}")' in result.stdout
    AutoModel.from_pretrained(tmp_path / "demo")


@pytest.mark.slow
def test_demo_goes_on_and_keeps_what_is_finished(tmp_path):
    def demo(*flags):
        command = [sys.executable, str(EXAMPLES / "demo.py"), "--output_dir", str(tmp_path / "demo"), *flags]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    with demo("--quick") as process:
        while not (tmp_path / "demo" / "checkpoint-5" / "trainer_state.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)  # Python loses an interrupt that falls into the start of a data loader worker
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate()[1]
    assert process.returncode == 130
    assert "Interrupted. The same command goes on from" in errors
    assert "Traceback" not in errors
    (tmp_path / "demo" / "checkpoint-10").mkdir()  # one that was not finished
    for flags in ([], ["--quick", "--seed", "1"]):
        with demo(*flags) as process:
            errors = process.communicate()[1]
        assert re.search(r"error: `output_dir` .* holds a demo with seed 42, with `--quick`: choose another", errors)
    with demo("--quick") as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    assert "Going on with the run in" in output
    assert "checkpoint-10 is passed over" in errors
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    with demo("--quick") as process:
        again = process.communicate()[0]
    assert "Test accuracy of linear probes" in again
    assert "All of this was there already" in again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    (tmp_path / "demo" / "metrics.json").unlink()
    with demo("--quick") as process:
        assert f"The model in {tmp_path / 'demo'} is trained." in process.communicate()[0]
    assert (tmp_path / "demo" / "metrics.json").is_file()
