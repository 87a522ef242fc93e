"""Official checkpoints of CRATE-MAE to our layout and back; parity of what comes out is in test_parity.py."""

import argparse
import re

import PIL.Image
import pytest
import torch
from official import assert_official, make_official
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForPreTraining

from crate_mae_hf import (
    CrateMaeConfig,
    CrateMaeForImageClassification,
    CrateMaeForPreTraining,
    CrateMaeImageProcessor,
    CrateMaeModel,
)
from crate_mae_hf.conversion import CRATE_MAE, convert_checkpoint, convert_key, revert_checkpoint


def wrap_blocks(key: str) -> str:
    """The name of a weight in a model of which FSDP wraps each block, and the whole."""
    return "_fsdp_wrapped_module." + re.sub(
        r"(blocks\.\d+)\.", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module.", key
    )


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("bare.pth", lambda weights: weights),
        ("model.pth", lambda weights: {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)}),
        ("module.pth.tar", lambda weights: {"state_dict": {f"module.{k}": v for k, v in weights.items()}}),
        ("bare.safetensors", lambda weights: weights),
        ("compiled.pth", lambda weights: {f"_orig_mod.{k}": v for k, v in weights.items()}),
        (
            "lightning.ckpt",
            lambda weights: {"state_dict": {f"model._orig_mod.module.{k}": v for k, v in weights.items()}},
        ),
        ("fsdp.pth", lambda weights: {"model": {wrap_blocks(k): v for k, v in weights.items()}}),
        ("nested.pth", lambda weights: {"epoch": 3, "state_dict": {"model": {"state_dict": weights}}}),
    ],
)
def test_every_way_a_checkpoint_is_stored(name, wrap, official, config, pixel_values, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(wrap(official), tmp_path / name)
    report = convert_checkpoint(tmp_path / name, tmp_path / "out", num_attention_heads=4, ista_lambda=5)
    assert {row.official_key for row in report if row.status == "dropped"} == set(CRATE_MAE.unused)
    assert sum(row.tensors for row in report if row.status == "mapped") == len(official) - len(CRATE_MAE.unused)
    model, info = AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    expected = CrateMaeForPreTraining(CrateMaeConfig(**{**config.to_dict(), "ista_lambda": 5}))
    expected.load_state_dict(
        {convert_key(k, CRATE_MAE.keys): v for k, v in official.items() if k not in CRATE_MAE.unused}
    )
    noise = torch.rand(2, 16)
    assert torch.equal(model(pixel_values, noise=noise).logits, expected(pixel_values, noise=noise).logits)


# The settings that tensors do not tell are given as a user would have to.
@pytest.mark.parametrize(
    ("changes", "told", "dtype"),
    [
        ({}, {"num_attention_heads": 4}, torch.float32),
        ({"num_attention_heads": 1, "decoder_num_attention_heads": 1}, {}, torch.float32),
        ({"num_attention_heads": 1}, {"decoder_num_attention_heads": 4}, torch.float32),
        (
            {"image_size": [16, 48], "patch_size": [8, 4], "num_channels": 5, "decoder_num_attention_heads": 2},
            {"num_attention_heads": 4, "decoder_num_attention_heads": 2, "mask_ratio": 0.5, "norm_pix_loss": True},
            torch.float32,
        ),
        ({"num_channels": 1}, {"num_attention_heads": 4}, torch.bfloat16),
    ],
)
def test_round_trip_is_bit_equal(changes, told, dtype, config, tmp_path):
    config = CrateMaeConfig(**{**config.to_dict(), "decoder_num_attention_heads": 4, **changes})
    official = make_official(config, dtype)
    torch.save({"model": official}, tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours", **told)
    ours = CrateMaeConfig.from_pretrained(tmp_path / "ours")
    for name in (*changes, *told, "num_hidden_layers", "decoder_num_hidden_layers", "hidden_size"):
        assert getattr(ours, name) == told.get(name, getattr(config, name)), name
    assert ours.dtype == dtype
    for name in ("back.pth", "back.safetensors"):
        revert_checkpoint(tmp_path / "ours", tmp_path / name)
    for back in (
        torch.load(tmp_path / "back.pth", weights_only=True)["model"],
        load_file(tmp_path / "back.safetensors"),
    ):
        assert_official(back, official)


@pytest.mark.parametrize(
    ("image_size", "picture", "num_channels"), [(32, (50, 40), 3), ([16, 48], (50, 40), 3), (32, (50, 40), 1)]
)
def test_image_processor_fits_the_model(image_size, picture, num_channels, config, tmp_path):
    config = CrateMaeConfig(**{**config.to_dict(), "image_size": image_size, "num_channels": num_channels})
    torch.save(make_official(config), tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", num_attention_heads=4)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixel_values = processor(PIL.Image.new("RGB", picture), return_tensors="pt").pixel_values
    CrateMaeModel.from_pretrained(tmp_path / "out")(pixel_values)


def test_standard_image_size_has_the_standard_processor(tmp_path):
    config = CrateMaeConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    torch.save(make_official(config), tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", num_attention_heads=4)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.to_dict() == type(processor)().to_dict() | {"auto_map": processor.auto_map}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`num_attention_heads` cannot be read off"),
        ({"size": "huge"}, "`size` must be one of tiny, small, base, large"),
        ({"size": "base"}, "`hidden_size` 768, the checkpoint has 32"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must divide"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1"),
        ({"num_attention_heads": 1}, r"unknown +blocks\.2\.layers\.0\.0\.fn\.to_out\.0\.weight"),
        ({"num_attention_heads": 4, "ista_lambda": -1.0}, "`ista_lambda` must not be negative"),
        ({"num_attention_heads": 4, "mask_ratio": 1.0}, "`mask_ratio` must lie in"),
    ],
)
def test_bad_settings(settings, message, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint, tmp_path / "out", **settings)


def test_untold_heads_of_a_decoder_beside_a_single_head(config, tmp_path):
    config = CrateMaeConfig(**{**config.to_dict(), "num_attention_heads": 1, "decoder_num_attention_heads": 4})
    torch.save(make_official(config), tmp_path / "official.pth")
    with pytest.raises(ValueError, match="`decoder_num_attention_heads` cannot be read off"):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "out")


def test_nothing_is_overwritten(checkpoint, config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or an empty folder"):
        convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4)
    CrateMaeForPreTraining(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="must be a new file"):
        revert_checkpoint(tmp_path / "ours", checkpoint)


def test_reverse_needs_a_pre_training_checkpoint(config, tmp_path):
    CrateMaeForImageClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"lacks \d+ weights such as `decoder\."):
        revert_checkpoint(tmp_path / "classifier", tmp_path / "back.pth")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        revert_checkpoint(tmp_path, tmp_path / "back.pth")
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    with pytest.raises(ValueError, match="one of type 'vit_mae'"):
        revert_checkpoint(tmp_path, tmp_path / "back.pth")


def test_settings_that_a_crate_mae_has_no_use_for(checkpoint, tmp_path):
    for name in ("image_size", "num_channels"):
        with pytest.raises(ValueError, match=f"`{name}` does not go with a checkpoint of CRATE-MAE"):
            convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4, **{name: 32})


def test_a_failed_run_leaves_nothing_in_the_way(official, tmp_path, monkeypatch):
    torch.save(official, tmp_path / "official.pth")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(CrateMaeImageProcessor, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", num_attention_heads=4)
    assert [path.name for path in tmp_path.iterdir()] == ["official.pth"]
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "out", num_attention_heads=4)
    with monkeypatch.context() as context:
        context.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            revert_checkpoint(tmp_path / "out", tmp_path / "back.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official.pth", "out"]
    revert_checkpoint(tmp_path / "out", tmp_path / "back.pth")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
