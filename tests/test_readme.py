"""The snippets of the README, of docs/conversion.md and of docs/objectives.md, run as they stand."""

import re

import pytest
import torch
from official import make_official
from PIL import Image
from snippets import snippets

from crate_mae_hf import (
    CrateConfig,
    CrateForImageClassification,
    CrateMaeConfig,
    CrateMaeImageProcessor,
)


def test_snippet_of_a_crate(tmp_path, monkeypatch, capsys):
    config = CrateConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8, num_labels=3
    )
    CrateForImageClassification(config).save_pretrained(tmp_path / "crate-base")
    CrateMaeImageProcessor.from_config(config).save_pretrained(tmp_path / "crate-base")
    Image.new("RGB", (50, 40)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    (snippet,) = snippets("docs/conversion.md", "Supervised CRATE")
    exec(compile(snippet, "docs/conversion.md", "exec"), {})
    assert re.match(r"LABEL_\d\n$", capsys.readouterr().out)


def test_snippet_of_a_conversion(tmp_path, monkeypatch, capsys):
    torch.save(make_official(CrateMaeConfig.from_size("base")), tmp_path / "crate_mae_base.pth")
    monkeypatch.chdir(tmp_path)
    snippet, _ = snippets("docs/conversion.md")
    exec(compile(snippet, "docs/conversion.md", "exec"), {})
    assert capsys.readouterr().out == "['pos_embed', 'decoder_embed.weight', 'decoder_embed.bias']\n"


def test_snippet_of_an_objective():
    (snippet,) = snippets("docs/objectives.md", "ViC-MAE")
    scope: dict = {}
    exec(compile(snippet, "docs/objectives.md", "exec"), scope)
    assert scope["autoencoder"].crate_mae.layers[0].ista.dictionary.grad is not None
    assert scope["outputs"].chance.item() == pytest.approx(1.9459, abs=1e-4)


def test_snippet_of_learned_masks():
    (snippet,) = snippets("docs/objectives.md", "MLO-MAE")
    scope: dict = {}
    exec(compile(snippet, "docs/objectives.md", "exec"), scope)
    assert [value.shape for value in scope["gradients"]] == [p.shape for p in scope["objective"].masking.parameters()]
    assert scope["mask"].sum(dim=1).tolist() == [147] * 4
