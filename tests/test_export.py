"""The snippets of docs/export.md, and what they export, against PyTorch."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from saving import rows_with, small_config
from snippets import snippets
from transformers import ViTConfig, ViTModel
from transformers.exporters import DynamoConfig, DynamoExporter, OnnxConfig, OnnxExporter

from crate_mae_hf import CrateMaeConfig, CrateMaeForImageClassification, CrateMaeForPreTraining, pretrained
from crate_mae_hf.export import main as export_for_browsers
from crate_mae_hf.registry import MODELS


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, dict]:
    """The folder in which the snippets ran, and their variables."""
    folder = tmp_path_factory.mktemp("export")
    config = CrateMaeConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    CrateMaeForPreTraining(config).save_pretrained(folder / "crate-mae")
    CrateMaeForImageClassification(config).save_pretrained(folder / "crate-mae-classifier")
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for snippet in snippets("docs/export.md"):
            exec(snippet, names)
    return folder, names


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("name", ["encoder", "classifier", "autoencoder"])
def test_exports_agree_with_pytorch(name, batch_size, exported):
    folder, names = exported
    model, inputs = names["models"][name]
    inputs = {key: torch.randn(batch_size, *value.shape[1:]) for key, value in inputs.items()}
    with torch.no_grad():
        expected = model(**inputs)

    session = onnxruntime.InferenceSession(folder / f"{name}-onnx" / "model.onnx")
    output_names = [output.name for output in session.get_outputs()]
    assert set(expected) == set(output_names)
    arrays = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    for key, array in zip(output_names, arrays, strict=True):
        np.testing.assert_allclose(array, expected[key].numpy(), atol=1e-4, rtol=1e-4, err_msg=key)

    program = torch.export.load(folder / f"{name}-torch" / "model.pt2").module()(**inputs)
    for key, value in expected.items():
        torch.testing.assert_close(program[key], value)


def test_snippet_runs_the_encoder_on_onnxruntime(exported):
    names = exported[1]
    expected = names["models"]["encoder"][0](names["pixel_values"])
    np.testing.assert_allclose(names["last_hidden_state"], expected[0].detach().numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(names["pooler_output"], expected[1].detach().numpy(), atol=1e-4, rtol=1e-4)


@rows_with("AutoModelForImageClassification")
def test_a_classifier_of_every_row_takes_any_batch_size(row, tmp_path):
    model = row.model_classes["AutoModelForImageClassification"](small_config(row)).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    shapes = {"pixel_values": {0: torch.export.Dim.AUTO}}
    pixel_values = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixel_values).logits
    program = DynamoExporter().export(model, inputs, config=DynamoConfig(dynamic_shapes=shapes))
    program.save_pretrained(tmp_path)
    actual = torch.export.load(tmp_path / "model.pt2").module()(pixel_values=pixel_values)["logits"]
    torch.testing.assert_close(actual, expected)
    OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic_shapes=shapes)).save_pretrained(tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"pixel_values": pixel_values.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for name, row in MODELS.items() if name != "crate_mae"], ids=lambda row: row.name)
def test_other_models_export_for_any_batch_size(row, tmp_path):
    images = torch.rand(3, 3, 32, 32)
    for auto_class in [name for name in row.model_classes if name.startswith("AutoModel")]:
        model = row.model_classes[auto_class](small_config(row)).eval()
        exported = OnnxExporter().export(
            model,
            {"pixel_values": images[:2]},
            config=OnnxConfig(dynamic_shapes={"pixel_values": {0: torch.export.Dim.AUTO}}),
        )
        exported.save_pretrained(tmp_path / auto_class)
        session = onnxruntime.InferenceSession(tmp_path / auto_class / "model.onnx")
        with torch.no_grad():
            expected = model(images)
        names = [output.name for output in session.get_outputs()]
        assert set(names) == set(expected)
        for name, array in zip(names, session.run(None, {"pixel_values": images.numpy()}), strict=True):
            np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-4, rtol=1e-4, err_msg=name)


def refusal(capsys, folder: Path, output: Path) -> str:
    """What the command says of a model that cannot be exported for browsers."""
    with pytest.raises(SystemExit) as refused:
        export_for_browsers([str(folder), str(output)])
    return f"{refused.value}{capsys.readouterr().err}"


def test_what_browsers_cannot_have_is_refused(tmp_path, capsys):
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    assert "of type 'vit'" in refusal(capsys, tmp_path / "vit", tmp_path / "out")
    config = CrateMaeConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8, num_channels=5
    )
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "five")
    assert "have 3 channels, those of" in refusal(capsys, tmp_path / "five", tmp_path / "out")
    assert "there is no such folder" in refusal(capsys, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "must be a new or an empty folder" in refusal(capsys, pretrained.path("fashion_mnist"), tmp_path)
