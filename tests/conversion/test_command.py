"""The command line of the conversion."""

import json
import re

import PIL.Image
import pytest
import torch
from official import assert_official, make_official

from crate_mae_hf import CrateConfig, CrateMaeConfig
from crate_mae_hf.conversion.__main__ import main


def test_round_trip_of_base_by_command(tmp_path, capsys):
    official = make_official(CrateMaeConfig.from_size("base"))
    torch.save(official, tmp_path / "base.pth")
    main([str(tmp_path / "base.pth"), str(tmp_path / "ours"), "--size", "base"])
    table = capsys.readouterr().out
    assert re.search(r"mapped +blocks\.\{i\}\.layers\.0\.1\.fn\.weight +crate_mae\.layers\.\{i\}\S+ +12\n", table)
    assert re.search(r"dropped +pos_embed +never read", table)
    assert "ista_lambda=0.5" in table
    assert CrateMaeConfig.from_pretrained(tmp_path / "ours").num_attention_heads == 12
    main([str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--reverse"])
    assert_official(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official)


def test_compare_lambda(checkpoint, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    PIL.Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20).save(tmp_path / "images" / "image.png")
    options = ["--num_attention_heads", "4", "--compare_lambda", "0.1", "5", "--images", str(tmp_path / "images")]
    main([str(checkpoint), str(tmp_path / "out"), *options])
    table = capsys.readouterr().out
    comparison = json.loads((tmp_path / "out" / "lambda_comparison.json").read_text())
    assert comparison["masked_loss"].keys() == {"0.1", "5.0"}
    for value, loss in comparison["masked_loss"].items():
        assert re.search(rf"{value} +{loss:.6f}\n", table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reverse", "--ista_lambda", "1"], "--reverse goes without --ista_lambda"),
        (["--compare_lambda", "1"], "go together"),
        (["--compare_lambda", "-1", "--images", "."], "must not be negative"),
        (["--size", "giant"], "invalid choice"),
    ],
)
def test_bad_command_lines(arguments, message, checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err


def test_no_images_to_compare_on(checkpoint, tmp_path):
    options = ["--num_attention_heads", "4", "--compare_lambda", "1", "--images", str(tmp_path)]
    with pytest.raises(SystemExit, match="there are no images in"):
        main([str(checkpoint), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_lambda_of_a_model_without_a_masked_loss(tmp_path):
    config = CrateConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    torch.save(make_official(config), tmp_path / "official.pth")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    options = ["--num_attention_heads", "4", "--compare_lambda", "1", "--images", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"masked loss, which supervised CRATE has not; its lambda is 0\.1"):
        main([str(tmp_path / "official.pth"), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()
