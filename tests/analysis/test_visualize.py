"""examples/visualize.py from the command line's point of view."""

import csv
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from transformers import ViTImageProcessor

from crate_mae_hf import CrateMaeForImageClassification, CrateMaeForPreTraining, CrateMaeImageProcessor
from crate_mae_hf.analysis.layers import DESCRIPTIONS

SCRIPT = Path(__file__).parents[2] / "examples" / "visualize.py"
MAPS = {"attention_heads", "attention_layers", "pca"}
RECONSTRUCTIONS = {f"reconstruction{kind}" for kind in ("", "_mask_ratios", "_masks", "_whole")}


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        PIL.Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path, config) -> Path:
    config.norm_pix_loss = True
    config.decoder_num_hidden_layers = 3
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "model")
    crop = {"height": 32, "width": 32}
    CrateMaeImageProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def visualize(run_script, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(**arguments) -> None:
        run_script(SCRIPT, *(part for name, value in arguments.items() for part in (f"--{name}", value)))

    return run


def pictures(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def test_everything_of_a_crate_mae(visualize, checkpoint, images, tmp_path, capsys):
    output = tmp_path / "output"
    visualize(model_name_or_path=checkpoint, images=images, output_dir=output, num_pictures=2)
    expected = {"compression_and_sparsity", "layer_steps", "reconstruction_statistics", *MAPS, *RECONSTRUCTIONS}
    assert pictures(output) == expected
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(expected)
    assert "src=" not in page.replace('src="data:image/png;base64,', "")
    assert "on 3 images" in page
    with (output / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["layer"]) for row in rows] == [
        (p, str(i)) for p in ("encoder", "decoder") for i in (1, 2, 3)
    ]
    assert {f"{name}_mean" for name in DESCRIPTIONS} <= set(rows[0])
    layers = json.loads((output / "layers.json").read_text())
    assert layers[1]["sparsity_mean"] == pytest.approx(float(rows[1]["sparsity_mean"]))
    errors = json.loads((output / "reconstructions.json").read_text())
    assert {row["statistics"] for row in errors} == {"none", "visible", "oracle"}
    assert "subspace_rate_before_unit" in capsys.readouterr().out


def test_a_folder_with_a_pattern_for_a_name(visualize, checkpoint, images, tmp_path):
    folder = images.rename(tmp_path / "images[12]")
    for name in ("images1", "images2"):
        (tmp_path / name).mkdir()
        PIL.Image.new("RGB", (40, 40)).save(tmp_path / name / "other.png")
    visualize(model_name_or_path=checkpoint, images=folder, output_dir=tmp_path / "output")
    assert "on 3 images of images[12]" in (tmp_path / "output" / "report.html").read_text()


def test_what_is_comparable_of_a_vit_mae(visualize, vit_mae, images, tmp_path):
    vit_mae.save_pretrained(tmp_path / "vit_mae")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit_mae")
    output = tmp_path / "output"
    visualize(model_name_or_path=tmp_path / "vit_mae", images=images, output_dir=output)
    assert pictures(output) == MAPS | RECONSTRUCTIONS
    assert not (output / "layers.csv").exists()
    assert (output / "report.html").is_file()


@pytest.mark.parametrize("name", ["crate", "alpha"])
def test_everything_of_a_classifier(name, visualize, images, tmp_path, request):
    crate = request.getfixturevalue(name)
    crate.save_pretrained(tmp_path / "crate")
    CrateMaeImageProcessor.from_config(crate.config).save_pretrained(tmp_path / "crate")
    output = tmp_path / "output"
    visualize(model_name_or_path=tmp_path / "crate", images=images, output_dir=output)
    assert pictures(output) == {"compression_and_sparsity", "layer_steps"} | MAPS
    assert len(json.loads((output / "layers.json").read_text())) == 3
    assert not (output / "reconstructions.csv").exists()
    page = (output / "report.html").read_text()
    assert "Reconstructions" not in page
    assert ("share of exact zeros in the code A_2" in page) == (name == "alpha")
    with pytest.raises(SystemExit, match='`statistics` must be "none"'):
        visualize(model_name_or_path=tmp_path / "crate", images=images, output_dir=tmp_path / "2", statistics="oracle")


def test_nothing_is_overwritten_unless_asked(visualize, checkpoint, images, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "pca.png").write_text("precious")
    with pytest.raises(SystemExit, match="is not empty"):
        visualize(model_name_or_path=checkpoint, images=images, output_dir=output)
    assert [path.name for path in output.iterdir()] == ["pca.png"]
    assert (output / "pca.png").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name_or_path": "nowhere/at_all"}, "`model_name_or_path`: cannot load"),
        ({"images": "no/such/folder"}, "`images`: cannot load"),
        ({"split_name": "valid"}, "`split_name`: there is no split 'valid', but train"),
        ({"num_images": 0}, "`num_images` must be at least 1"),
        ({"eps_squared": 0}, "`eps_squared` must be positive"),
        ({"layer": 3}, "`layer` must lie in"),
        ({"mask_ratios": 1.5}, "`mask_ratios` must lie in"),
    ],
)
def test_bad_input_ends_with_one_line(visualize, checkpoint, images, tmp_path, arguments, message):
    given = {"model_name_or_path": checkpoint, "images": images, "output_dir": tmp_path / "output", **arguments}
    with pytest.raises(SystemExit, match=message):
        visualize(**given)
    assert not given["output_dir"].exists()


def test_a_classifier_has_no_decoder_to_draw(visualize, checkpoint, config, images, tmp_path):
    CrateMaeForImageClassification(config).save_pretrained(checkpoint)
    with pytest.raises(SystemExit, match=r"lacks \d+ weights of CrateMaeForPreTraining, among them decoder"):
        visualize(model_name_or_path=checkpoint, images=images, output_dir=tmp_path / "output")
