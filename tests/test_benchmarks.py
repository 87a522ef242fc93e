"""The benchmarks on models that take no time, and the literal port against the model."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import data, mlo_mae, run, runs, scaling, timed_run
from benchmarks.literal import LiteralCrateMae
from benchmarks.models import MODELS, Size, Step, build
from crate_mae_hf import CrateMaeForPreTraining

SMALL = ["--hidden_size", "48", "--num_layers", "2", "--num_heads", "3", "--image_size", "32", "--patch_size", "8"]


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_literal_port_is_the_model(config, pixel_values, norm_pix_loss):
    config.norm_pix_loss = norm_pix_loss
    model = CrateMaeForPreTraining(config)
    literal = LiteralCrateMae(config)
    literal.load_state_dict(model.state_dict())
    noise = torch.rand(2, 16)
    expected, actual = literal(pixel_values, noise), model(pixel_values, noise=noise)
    for name in ("loss", "logits", "mask"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(o.loss, list(m.parameters())) for o, m in ((actual, model), (expected, literal))]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)
    features, _ = literal.crate_mae(pixel_values)
    torch.testing.assert_close(model.crate_mae(pixel_values).last_hidden_state, features, atol=1e-5, rtol=1e-5)


# Of the paper, and of Transformers' checkpoints: trainable weights without the fixed tables.
@pytest.mark.parametrize(
    ("name", "mode", "millions"),
    [
        ("crate_mae", "train", 43.7),
        ("literal", "train", 43.7),
        ("vit_mae", "train", 111.7),
        ("vit_mae_768", "train", 143.5),
        ("vit", "features", 85.8),
        ("dinov2", "features", 85.8),
    ],
)
def test_models_have_their_published_sizes(name, mode, millions):
    with torch.device("meta"):
        parameters = build(name, mode, Size()).parameters()
    assert sum(p.numel() for p in parameters if p.requires_grad) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", list(MODELS))
def test_every_model_takes_a_step(mode, dtype):
    for name in MODELS[mode]:
        step = Step(name, mode, Size(48, 2, 3, 32, 8), dtype, "cpu")
        step.set_batch_size(2)
        before = [parameter.clone() for parameter in step.model.parameters()]
        for phase in step.phases.values():
            phase()
        changed = any(not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))
        assert changed == (mode == "train"), name


def test_run(tmp_path, capsys):
    arguments = [*SMALL, "--batch_size", "1", "2", "--rounds", "2", "--dtype", "float32", "--output_dir"]
    run.main([*arguments, str(tmp_path / "out"), "--skip_memory", "--mode", "train", "inference", "features"])
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(record["results"]) == 2 * sum(len(models) for models in MODELS.values())
    for result in record["results"]:
        assert result["seconds"]["min"] <= result["seconds"]["median"] <= result["seconds"]["max"]
        assert result["operations"] > 0
    table = (tmp_path / "out" / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert "| ViTMAE, standard decoder " in table
    assert (tmp_path / "out" / "results.png").stat().st_size > 10_000
    with pytest.raises(SystemExit):  # nothing is written over
        run.main([*arguments, str(tmp_path / "out")])
    assert "holds results already" in capsys.readouterr().err


def test_folding_saves_the_operations_it_claims():
    counts = {}
    for name in ("crate_mae", "literal"):
        step = Step(name, "train", Size(48, 1, 3, 64, 8), torch.float32, "cpu")
        step.set_batch_size(2)
        counts[name] = run.count_operations(step)
    tokens, width, masked = 2 * 65, 48, 2 * 48
    fewer = 2 * (6 - 3) * tokens * width**2 - 2 * 2 * width**3  # products over the tokens, less M and its gradient
    fewer += 2 * 3 * (tokens - masked) * width * 192  # the last product for visible patches
    fewer -= 2 * 2 * 2 * 3 * 65**2 * 16  # in both layers SDPA's backward computes the attention map again
    fewer += 2 * 3 * (tokens - masked) * width**2  # in the decoder's layer O takes masked patches alone,
    fewer += 2 * 7 * (tokens - masked) * 65 * width  # and attention has no other queries
    assert counts["literal"] - counts["crate_mae"] == fewer


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept():
    script = """
import resource, sys, torch
from benchmarks.measure import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB, which glibc gives back at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
print([page_faults() for _ in range(6)][-1])  # small allocations may take the first blocks that become free
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept, given_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", script, argument],
                cwd=Path(__file__).parents[1],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for argument in ("keep", "default")
    )
    assert kept < given_back / 4


def test_peak_memory_grows_with_the_batch():
    memory = []
    for batch_size in (1, 128):  # each in a process of its own: the system keeps the highest memory of a whole process
        settings = ("crate_mae", "train", Size(64, 2, 2, 64, 8), torch.float32, "cpu", False, batch_size, 1)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory.append(pool.apply(run.peak_memory, settings))
    assert memory[1] > memory[0] + 20


def test_scaling(tmp_path):
    scaling.main([*SMALL, "--batch_size", "2", "--rounds", "1", "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "scaling.json").read_text())["results"]
    assert 0.7 < results["depth"]["expected_exponent"] < 1  # patch embedding and the last product do not grow
    assert results["batch"]["expected_exponent"] == pytest.approx(1, abs=0.1)
    assert 1 < results["width"]["expected_exponent"] < 3
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_exponent():
    assert scaling.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_data(capsys):
    small = ["--hidden_size", "48", "--num_layers", "1", "--image_size", "32", "--patch_size", "8"]
    data.main([*small, "--num_images", "8", "--batch_size", "4", "--num_workers", "0", "--photo_size", "64", "80"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["decoded by Pillow", "as it is", "normalised on the device"]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows[2:])
    assert rows[2][3] == "1.00"
    assert "A training step takes" in printed


def test_mlo_mae(capsys):
    small = ["--image_size", "32", "--patch_size", "8", "--batch_size", "2", "--rounds", "1"]
    mlo_mae.main(small)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    (_, plain, *_), (_, cycle, *_) = ([cell.strip() for cell in row[1:-1]] for row in rows)
    assert float(cycle) > float(plain) > 0


RUNS = [
    *SMALL, "--photo_size", "64", "80", "--batch_size", "2", "--num_workers", "0", "--rounds", "1",
    "--first_steps", "1", "--steps", "2", "--output_dir",
]  # fmt: skip


def check_runs(folder: Path, printed: str) -> None:
    (result,) = json.loads((folder / "results.json").read_text())["results"]
    assert [(each["program"], each["freed_memory"]) for each in result["runs"]] == [
        (program, memory) for program in runs.PROGRAMS for memory in ("given back", "kept")
    ]
    for each in result["runs"]:
        (record,) = each["rounds"]
        assert all(record[name] > 0 for name in ("seconds", "cpu_seconds", "peak_memory_mib"))
        assert min(record["system_seconds"], record["page_faults"]) >= 0
    assert (folder / "results.md").read_text() in printed
    assert "| run_mae.py / bare loop, kept " in printed
    with pytest.raises(SystemExit):  # nothing is written over
        runs.main([*RUNS, str(folder)])


def test_runs(tmp_path, monkeypatch, capsys):
    """All programs in this process, where starting them takes no time."""
    started, kept = [], []

    def run_here(command: list[str], **kwargs: object) -> subprocess.CompletedProcess:
        started.append(command[3])
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command[2:])
            patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", list(transformers.trainer.DEFAULT_CALLBACKS))
            patch.setattr(timed_run, "keep_freed_memory", lambda: kept.append(command[3]))
            timed_run.main()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(timed_run.subprocess, "run", run_here)
    runs.main([*RUNS, str(tmp_path / "out")])
    check_runs(tmp_path / "out", capsys.readouterr().out)
    ours, bare, vit_mae = runs.PROGRAMS.values()
    assert started == [ours, ours, bare, bare, vit_mae, vit_mae]
    assert kept == [ours, bare, vit_mae]


def test_every_round_of_runs_begins_with_another(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(runs, "time_program", lambda program, *args: order.append((program, args[-1])) or {})
    args = runs.parse_args([*RUNS, str(tmp_path / "out"), "--rounds", "3", "--programs", runs.OURS, runs.BARE])
    result = runs.measure(tmp_path, args, Size(48, 2, 3, 32, 8), 2, 0)
    rounds = [order[:4], order[4:8], order[8:]]
    assert {first for first, *_ in rounds} == set(order[:3])
    assert all(sorted(each) == sorted(rounds[0]) for each in rounds)
    assert [len(each["rounds"]) for each in result["runs"]] == [3] * 4


def test_ratios_of_runs_are_those_of_each_round():
    def rounds(*values: float) -> list[dict[str, float]]:
        return [{"seconds": value, "cpu_seconds": 2 * value, "peak_memory_mib": 100.0} for value in values]

    found = runs.compare(
        {
            "runs": [
                {"program": runs.OURS, "freed_memory": "kept", "rounds": rounds(2, 6, 9)},
                {"program": runs.BARE, "freed_memory": "kept", "rounds": rounds(1, 2, 6)},
            ]
        }
    )
    (ratio,) = found
    assert (ratio["of"], ratio["to"]) == ((runs.OURS, "kept"), (runs.BARE, "kept"))
    assert ratio["cpu_seconds"] == ratio["seconds"] == {"median": 2.0, "min": 1.5, "max": 3.0}
    assert ratio["peak_memory_mib"]["median"] == 1


@pytest.mark.slow
def test_runs_in_processes_of_their_own(tmp_path, capsys):
    runs.main([*RUNS, str(tmp_path / "out")])
    check_runs(tmp_path / "out", capsys.readouterr().out)


def test_a_run_that_fails_says_why(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stderr="error: the disk is full")
    monkeypatch.setattr(timed_run.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(SystemExit, match=r"run_mae.py failed:\nerror: the disk is full"):
        runs.main([*RUNS, str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
