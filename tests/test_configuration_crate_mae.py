import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 3}, "`hidden_size` must be a multiple of 4"),
        ({"num_attention_heads": 5}, r"`num_attention_heads` must divide `hidden_size` \(768\), got 5"),
        ({"decoder_num_attention_heads": 5}, "`decoder_num_attention_heads` must divide"),
        ({"decoder_hidden_size": 512}, r"`decoder_hidden_size` must equal `hidden_size` \(768\), got 512"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, got 0"),
        ({"num_channels": 0}, "`num_channels` must be at least 1"),
        ({"mask_ratio": 1.0}, r"`mask_ratio` must lie in \[0, 1\), got 1.0"),
        ({"mask_ratio": -0.1}, "`mask_ratio`"),
        ({"mssa_init_scale": -0.1}, "`mssa_init_scale` must not be negative, got -0.1"),
        ({"image_size": 225}, "`image_size` must be divisible by `patch_size`, got an image height of 225"),
        ({"image_size": (224, 225)}, "an image width of 225 and a patch width of 16"),
        ({"image_size": [224]}, r"`image_size` must be an integer or a \(height, width\) pair"),
        ({"patch_size": 0}, "`patch_size` must be positive"),
        ({"ista_step_size": 0}, "`ista_step_size` must be positive"),
        ({"ista_lambda": -1}, "`ista_lambda` must not be negative"),
        ({"ista_lambda": float("nan")}, "`ista_lambda`"),
        ({"ista_lambda": float("inf")}, "`ista_lambda` must be finite, got inf"),
        ({"final_layer_norm_eps": float("inf")}, "`final_layer_norm_eps` must be finite"),
        ({"norm_pix_loss": True, "patch_size": 1, "num_channels": 1}, "`norm_pix_loss` needs more than one value"),
        ({"layer_norm_eps": 0.0}, "`layer_norm_eps`"),
        ({"hidden_dropout_prob": 1.0}, "`hidden_dropout_prob`"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must lie in \[0, 1\), got 1.0"),
        ({"pooling": "max"}, '`pooling` must be "mean" or "cls", got \'max\''),
        ({"out_features": ["stage13"]}, "out_features"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrateMaeConfig(**arguments)


def test_types_are_checked():
    with pytest.raises(StrictDataclassFieldValidationError, match="ista_lambda"):
        CrateMaeConfig(ista_lambda="0.5")
    assert CrateMaeConfig(ista_lambda=1).ista_lambda == 1  # an integer is a number


@pytest.mark.parametrize(
    ("size", "width", "heads", "layers"),
    [("tiny", 384, 6, 12), ("small", 576, 12, 12), ("base", 768, 12, 12), ("large", 1024, 16, 24)],
)
def test_sizes(size, width, heads, layers):
    config = CrateMaeConfig.from_size(size)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (width, heads, layers)
    assert config.decoder_hidden_size == width
    assert (config.decoder_num_attention_heads, config.decoder_num_hidden_layers) == (heads, layers)


def test_size_overrides():
    config = CrateMaeConfig.from_size("tiny", num_hidden_layers=4, image_size=32, ista_lambda=5.0)
    assert (config.hidden_size, config.num_hidden_layers, config.decoder_num_hidden_layers) == (384, 4, 4)
    assert (config.grid_size, config.ista_lambda) == ((2, 2), 5.0)
    with pytest.raises(ValueError, match="`size` must be one of tiny, small, base, large, got 'huge'"):
        CrateMaeConfig.from_size("huge")


def test_save_and_load(tmp_path):
    # A decoder that differs from the encoder but equals the class's default depth must not fall back to the encoder's.
    config = CrateMaeConfig(num_hidden_layers=4, decoder_num_hidden_layers=12, image_size=(64, 32), pooling="cls")
    config.save_pretrained(tmp_path)
    loaded = CrateMaeConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.decoder_num_hidden_layers, loaded.grid_size) == (12, (4, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_ratio": 1.5}, r"`mask_ratio` must lie in \[0, 1\), got 1.5"),
        ({"ista_lambda": -1}, "`ista_lambda` must not be negative"),
        ({"pooling": "max"}, "`pooling` must be"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must divide"),
    ],
)
def test_changes_are_checked_when_a_checkpoint_is_loaded(config, change, message, tmp_path):
    """Transformers sets them without a look, and would refuse to save the model after all of its training."""
    CrateMaeForPreTraining(config).save_pretrained(tmp_path)
    for load in (CrateMaeConfig.from_pretrained, AutoConfig.from_pretrained, CrateMaeForPreTraining.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, **change)
    assert AutoConfig.from_pretrained(tmp_path, mask_ratio=0.5).mask_ratio == 0.5
