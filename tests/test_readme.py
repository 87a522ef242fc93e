"""The README's snippets for features and reconstructions, run as they stand."""

import re
from pathlib import Path

import pytest
from PIL import Image

from crate_mae_hf import (
    CrateConfig,
    CrateForImageClassification,
    CrateMaeConfig,
    CrateMaeForPreTraining,
    CrateMaeImageProcessor,
)

ROOT = Path(__file__).parents[1]


def snippets(section: str) -> list[str]:
    """The Python blocks of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(
    ("section", "printed"),
    [
        ("Features", r"^torch.Size\(\[8, 32\]\) torch.Size\(\[8, 32\]\)\n$"),
        ("Reconstruction", r"^tensor\(\d.*torch.Size\(\[8, 1, 28, 28\]\)\n$"),
    ],
)
def test_snippet(section, printed, tmp_path, monkeypatch, capsys):
    config = CrateMaeConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=7, num_channels=1
    )
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "outputs" / "demo")
    CrateMaeImageProcessor.from_config(config).save_pretrained(tmp_path / "outputs" / "demo")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (snippet,) = snippets(section)
    exec(compile(snippet, section, "exec"), {})
    assert re.match(printed, capsys.readouterr().out, re.DOTALL)


def test_snippet_of_a_crate(tmp_path, monkeypatch, capsys):
    config = CrateConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8, num_labels=3
    )
    CrateForImageClassification(config).save_pretrained(tmp_path / "crate-base")
    CrateMaeImageProcessor.from_config(config).save_pretrained(tmp_path / "crate-base")
    Image.new("RGB", (50, 40)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    (snippet,) = snippets("Supervised CRATE")
    exec(compile(snippet, "Supervised CRATE", "exec"), {})
    assert re.match(r"\[\{'label': 'LABEL_\d', 'score': 0\.\d+\}\]\n$", capsys.readouterr().out)
