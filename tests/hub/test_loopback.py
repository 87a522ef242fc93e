"""Pushing to a Hub and loading from it, over HTTP: nothing is replaced, but for the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from crate_mae_hf import CrateMaeForPreTraining, CrateMaeModel

from .loopback import TOKEN, Hub, running_hub

EXAMPLES = Path(__file__).parents[2] / "examples"
# Prints the sum of an image's features, by the Auto classes and by a pipeline.
LOAD = """
import sys
package, name, *revision = sys.argv[1:]
if package == "without":
    sys.path = [path for path in sys.path if "site-packages" in path or not path.endswith("src")]
    sys.modules["crate_mae_hf"] = None
    options = {"trust_remote_code": True}
else:
    import crate_mae_hf
    options = {}
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, pipeline
if revision:
    options["revision"] = revision[0]
model = AutoModel.from_pretrained(name, **options)
assert type(model).__module__.startswith("transformers_modules" if package == "without" else "crate_mae_hf")
image = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20).convert("RGB")
inputs = AutoImageProcessor.from_pretrained(name, **options)(image, return_tensors="pt")
assert AutoBackbone.from_pretrained(name, **options).num_features == [32] * 3
print(model(**inputs).last_hidden_state.abs().sum().item())
print(sum(abs(x) for row in pipeline("image-feature-extraction", model=name, **options)(image)[0] for x in row))
"""


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


def run(hub: Hub, tmp_path: Path, *arguments: str) -> str:
    """Run Python as a user of this Hub would, with a cache of its own; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def features(model: CrateMaeModel, processor) -> float:
    image = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20).convert("RGB")
    with torch.no_grad():
        return model.eval()(**processor(image, return_tensors="pt")).last_hidden_state.abs().sum().item()


@pytest.mark.slow
def test_a_model_by_name_and_revision(hub, pretrained, tmp_path):
    name, processor = "org/crate-mae-base", AutoImageProcessor.from_pretrained(pretrained)
    first = CrateMaeModel.from_pretrained(pretrained)
    url = run(hub, tmp_path, "-m", "crate_mae_hf.hub", str(pretrained), name, "--license", "mit")
    assert url == f"{hub.endpoint}/{name}\n"
    ((revision, files),) = hub.repositories[name]
    assert b"license: mit" in files["README.md"]
    # New weights in a second commit, by Transformers' own method.
    torch.manual_seed(1)
    second = CrateMaeForPreTraining(first.config)
    second.save_pretrained(tmp_path / "second")
    push = f"""
import crate_mae_hf
from transformers import AutoModelForPreTraining
AutoModelForPreTraining.from_pretrained({str(tmp_path / "second")!r}).push_to_hub({name!r})
"""
    run(hub, tmp_path, "-c", push)
    assert len(hub.repositories[name]) == 2
    for package in ("with", "without"):
        for options, model in (((), second.crate_mae), ((revision,), first)):
            values = [float(x) for x in run(hub, tmp_path, "-c", LOAD, package, name, *options).split()]
            assert values == pytest.approx([features(model, processor)] * 2, rel=1e-4), (package, options)


@pytest.mark.slow
def test_a_training_run_that_pushes(hub, tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(6):
        Image.effect_noise((40, 40), 50 + index).convert("RGB").save(tmp_path / "images" / f"{index}.png")
    shape = "image_size=32,patch_size=8,hidden_size=32,num_hidden_layers=2,num_attention_heads=4"
    flags = ["--config_overrides", shape, "--train_dir", str(tmp_path / "images"), "--do_train", "--do_eval"]
    flags += ["--train_val_split", "0.3", "--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu"]
    flags += ["--push_to_hub", "--hub_model_id", "org/trained", "--output_dir", str(tmp_path / "out")]
    run(hub, tmp_path, str(EXAMPLES / "run_mae.py"), *flags)
    _, files = hub.repositories["org/trained"][-1]
    assert {"README.md", "config.json", "model.safetensors", "modeling_crate_mae.py"} <= files.keys()
    assert not any(path.startswith("checkpoint") for path in files)
    for package in ("with", "without"):
        values = run(hub, tmp_path, "-c", LOAD, package, "org/trained").split()
        assert len(values) == 2
