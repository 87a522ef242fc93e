"""Runs that are killed at random moments, many of them while a checkpoint is written.

A few kills by default; `KILLS=20 python -m pytest -m slow -s tests/training/test_kills.py` for a sweep, `KILL_SEED` for
other moments.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from crate_mae_hf.training.checkpoints import find_fault, last_complete_checkpoint, list_checkpoints

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "run_mae.py": [],
    "run_vic_mae.py": ["--projector_size", "32", "--contrastive_rise", "0.5"],
    "run_mlo_mae.py": ["--mask_hidden_size", "32", "--score_noise", "0.1"],
}
LEFT = {
    "run_mae.py": set(),
    "run_vic_mae.py": {"objective.safetensors"},
    "run_mlo_mae.py": {"objective.safetensors", "masking.safetensors"},
}
KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("KILL_SEED", "0"))
STEPS_PER_KILL = 40  # that a process makes on average before it is killed
SHAPE = "image_size=16,patch_size=4,hidden_size=32,num_attention_heads=2,num_hidden_layers=1"


def begin(script: str, folder: Path, output: str, *flags: str) -> subprocess.Popen:
    """Start a run that writes a checkpoint after every step."""
    command = [
        sys.executable,
        str(EXAMPLES / script),
        *SCRIPTS[script],
        "--output_dir",
        str(folder / output),
        "--do_train",
        "--use_cpu",
    ]
    command += ["--train_dir", str(folder / "images"), "--cache_dir", str(folder / "cache")]
    command += ["--config_overrides", SHAPE, "--max_steps", str(2 * STEPS_PER_KILL * KILLS), "--seed", "1"]
    command += ["--per_device_train_batch_size", "4", "--dataloader_pin_memory", "false", "--disable_tqdm", "true"]
    command += ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "3", "--logging_steps", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def wait_for_steps(process: subprocess.Popen, output: Path, number: int) -> None:
    """Wait until checkpoints of so many new steps have been begun, or the process has ended."""
    first = max(list_checkpoints(output), default=0)
    while process.poll() is None and max(list_checkpoints(output), default=0) < first + number:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("script", list(SCRIPTS))
def test_killed_runs_resume_to_the_unbroken_weights(tmp_path, script):
    for number in range(20):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number:02}.png")
    with begin(script, tmp_path, "whole") as process:
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors[-3000:]

    output, moments = tmp_path / "killed", random.Random(SEED)
    hit_a_write = []
    for _ in range(KILLS):
        word = "auto" if last_complete_checkpoint(output) is None else "true"
        with begin(script, tmp_path, "killed", "--resume_from_checkpoint", word) as process:
            wait_for_steps(process, output, moments.randint(0, 2 * STEPS_PER_KILL))
            time.sleep(moments.uniform(0, 0.05))
            assert process.poll() is None, "the run is over"
            process.kill()
        faults = [find_fault(checkpoint) for checkpoint in list_checkpoints(output).values()]
        hit_a_write.append(faults[0] if faults else None)
    print(f"\n{len(hit_a_write)} kills, {sum(map(bool, hit_a_write))} of them left a checkpoint half written:")
    print("\n".join(filter(None, hit_a_write)))

    with begin(script, tmp_path, "killed", "--resume_from_checkpoint", "true") as process:
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors[-3000:]
    if hit_a_write[-1]:
        assert "is passed over" in errors
    files = {path.name for path in (tmp_path / "whole").glob("*.safetensors")}
    assert files == {"model.safetensors"} | LEFT[script]
    for file in files:
        whole, killed = (load_file(tmp_path / name / file) for name in ("whole", "killed"))
        assert all(torch.equal(killed[name], value) for name, value in whole.items())
