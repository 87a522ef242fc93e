"""Exported models in Node, by transformers.js, against PyTorch."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from saving import SAVED, save
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from crate_mae_hf import pretrained
from crate_mae_hf.export import export_for_browsers

HERE = Path(__file__).parent
# What is exported of a folder of this class: the model with its head, or its encoder.
LOADED_AS = {
    "AutoModelForImageClassification": AutoModelForImageClassification,
    "AutoModelForPreTraining": AutoModel,
    "AutoModel": AutoModel,
}
MODELS = {
    f"{row.config_class.model_type}-{auto_class}": (row, auto_class)
    for row, auto_class in SAVED
    if auto_class in LOADED_AS
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js with npm"),
]


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """A folder with our script and transformers.js, installed where it is not yet."""
    folder = HERE.parents[1] / ".cache" / "javascript"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "run.mjs"):
        shutil.copy(HERE / name, folder)
    # Packages' own scripts would fetch a build for GPUs.
    subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def results(node_folder, tmp_path_factory) -> tuple[dict[str, Path], list[PIL.Image.Image], dict]:
    """The folders of the models by name, the images, and what transformers.js makes of them."""
    folder = tmp_path_factory.mktemp("javascript")
    torch.manual_seed(0)
    sources = {"grey": pretrained.path("fashion_mnist")}
    for name, (row, auto_class) in MODELS.items():
        sources[name] = folder / "saved" / name
        save(row, auto_class, sources[name])
    for name, source in sources.items():
        export_for_browsers(source, folder / "models" / name)
        written = sorted(path.name for path in (folder / "models" / name).rglob("*") if path.is_file())
        assert written == ["config.json", "model.onnx", "preprocessor_config.json"]
    generator = np.random.default_rng(0)
    images = []
    for number, channels in enumerate((3, 1)):  # of the models' own size, so that nobody resizes
        pixels = generator.integers(0, 256, (32, 32, channels), dtype=np.uint8)
        images.append(PIL.Image.fromarray(pixels.repeat(3 // channels, axis=2)))
        images[-1].save(folder / f"{number}.png")
    paths = [folder / "0.png", folder / "1.png"]
    command = ["node", "run.mjs", folder / "models", *paths]
    run = subprocess.run(command, cwd=node_folder, check=True, capture_output=True, text=True)
    return sources, images, json.loads(run.stdout)


@pytest.mark.parametrize("name", list(MODELS))
def test_numbers_are_those_of_pytorch(name, results):
    sources, images, by_node = results
    found = by_node[name]
    pixel_values = AutoImageProcessor.from_pretrained(sources[name])(images, return_tensors="pt").pixel_values
    np.testing.assert_allclose(found["pixel_values"], pixel_values, atol=1e-5)
    model = LOADED_AS[MODELS[name][1]].from_pretrained(sources[name])
    with torch.no_grad():
        expected = model(pixel_values)
    assert set(found) - {"pixel_values", "classes"} == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4, rtol=1e-4, err_msg=key)
    if "logits" in expected:
        for classes, probabilities in zip(found["classes"], expected.logits.softmax(dim=1), strict=True):
            scores = {each["label"]: each["score"] for each in classes}
            assert scores == pytest.approx(
                dict(zip(model.config.label2id, probabilities.tolist(), strict=True)), abs=1e-5
            )


def test_grey_model_takes_pictures_in_colour(results):
    """Its pixel values are not compared: they are resized, by each in its own way."""
    sources, _, by_node = results
    found = by_node["grey"]
    pixel_values = torch.tensor(found["pixel_values"])
    assert pixel_values.shape == (2, 3, 28, 28)
    assert torch.equal(pixel_values[1, :1].expand(3, -1, -1), pixel_values[1])
    luma = (pixel_values * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(sources["grey"])(luma)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-3, rtol=1e-3, err_msg=key)
