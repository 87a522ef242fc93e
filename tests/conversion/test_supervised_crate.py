"""Official checkpoints of supervised CRATE to our layout and back."""

import re

import PIL.Image
import pytest
import torch
from official import make_official
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from crate_mae_hf import CrateConfig
from crate_mae_hf.conversion import convert_checkpoint, revert_checkpoint
from crate_mae_hf.conversion.__main__ import main


@pytest.fixture
def crate_config() -> CrateConfig:
    return CrateConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, num_labels=10
    )


@pytest.mark.parametrize(
    ("changes", "told", "dtype"),
    [
        ({}, {"num_attention_heads": 4}, torch.float32),
        ({"num_attention_heads": 1}, {}, torch.float32),
        ({"num_channels": 5, "patch_size": 4}, {"num_attention_heads": 4, "num_channels": 5}, torch.bfloat16),
        ({"ista_lambda": 5}, {"num_attention_heads": 4, "ista_lambda": 5}, torch.float32),
    ],
)
def test_crate_round_trip_is_bit_equal(changes, told, dtype, crate_config, tmp_path):
    config = CrateConfig(**{**crate_config.to_dict(), **changes})
    official = make_official(config, dtype)
    save_file(official, tmp_path / "official.safetensors")
    report = convert_checkpoint(tmp_path / "official.safetensors", tmp_path / "ours", **told)
    assert {row.status for row in report} == {"mapped"}
    assert sum(row.tensors for row in report) == len(official)
    ours = CrateConfig.from_pretrained(tmp_path / "ours")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels"):
        assert getattr(ours, name) == getattr(config, name), name
    assert (ours.num_labels, ours.ista_lambda, ours.dtype) == (10, config.ista_lambda, dtype)
    revert_checkpoint(tmp_path / "ours", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], value) for key, value in official.items())


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_crate_of_a_published_size_by_command(size, tmp_path, capsys):
    official = make_official(CrateConfig.from_size(size, num_labels=1000))
    torch.save({"state_dict": official, "arch": f"CRATE_{size}"}, tmp_path / "official.pth.tar")
    main([str(tmp_path / "official.pth.tar"), str(tmp_path / "ours"), "--size", size])
    output = capsys.readouterr().out
    assert re.search(r"mapped +transformer\.layers\.\{i\}\.1\.fn\.weight +crate\.layers\.\{i\}\S+ +12\n", output)
    assert "ista_lambda=0.1" in output
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    assert model.config.num_attention_heads == CrateConfig.from_size(size).num_attention_heads
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert (processor.size.shortest_edge, processor.crop_size.height) == (256, 224)
    main([str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--reverse"])
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert all(torch.equal(back[key], value) for key, value in official.items())


def test_crate_for_another_image_size(crate_config, tmp_path):
    official = make_official(crate_config)
    torch.save(official, tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "same", num_attention_heads=4)
    main([str(tmp_path / "official.pth"), str(tmp_path / "out"), "--num_attention_heads", "4", "--image_size", "48"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixel_values = processor(
        PIL.Image.effect_mandelbrot((60, 50), (-2, -1, 1, 1), 20), return_tensors="pt"
    ).pixel_values
    assert (model.config.image_size, pixel_values.shape[2:]) == (48, (48, 48))
    same = AutoModelForImageClassification.from_pretrained(tmp_path / "same")
    expected = same(pixel_values, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(model(pixel_values).logits, expected)
    assert expected.std() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`num_attention_heads` cannot be read off"),
        ({"size": "base"}, "`hidden_size` 768, the checkpoint has 32"),
        ({"num_attention_heads": 4, "num_channels": 5}, "`num_channels` must be such that the 192 values"),
        ({"num_attention_heads": 4, "num_channels": 0}, "`num_channels` must be such that"),
        (
            {"num_attention_heads": 4, "mask_ratio": 0.5},
            "`mask_ratio` does not go with a checkpoint of supervised CRATE",
        ),
        ({"num_attention_heads": 4, "image_size": 33}, "`image_size` must be divisible by `patch_size`"),
    ],
)
def test_bad_settings_of_a_crate(settings, message, crate_config, tmp_path):
    torch.save(make_official(crate_config), tmp_path / "official.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_crates_that_cannot_be_converted(crate_config, tmp_path):
    path = tmp_path / "official.pth"
    official = make_official(crate_config)
    for change, message in (
        ({"pos_embedding": torch.zeros(1, 16, 32)}, "must be that of a square grid of patches, got 15 patches"),
        ({"to_latent.weight": torch.zeros(1)}, r"unknown +to_latent\.weight +not a weight of supervised CRATE"),
        ({"cls_token": torch.zeros(1, 1, 31)}, r"wrong shape +cls_token +got \(1, 1, 31\), needs \(1, 1, 32\)"),
    ):
        torch.save({**official, **change}, path)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)
