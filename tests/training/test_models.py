from dataclasses import dataclass

import pytest
from transformers import ResNetConfig, ViTConfig, ViTImageProcessor

from crate_mae_hf import CrateMaeConfig, CrateMaeImageProcessor
from crate_mae_hf.data.augmentation import AugmentationArguments
from crate_mae_hf.training.arguments import ModelArguments
from crate_mae_hf.training.models import build_image_processor, config_changes, load_config


@dataclass
class Arguments(ModelArguments):
    mask_ratio: float | None = None
    norm_pix_loss: bool | None = None


def test_changes_come_from_overrides_and_arguments_of_their_own():
    names = ("mask_ratio", "norm_pix_loss")
    assert config_changes(Arguments(), CrateMaeConfig, names) == {}
    given = Arguments(config_overrides="image_size=32,mask_ratio=0.6", mask_ratio=0.5)
    assert config_changes(given, CrateMaeConfig, names) == {"image_size": 32, "mask_ratio": 0.5}
    assert config_changes(given, CrateMaeConfig) == {"image_size": 32, "mask_ratio": 0.6}
    with pytest.raises(ValueError, match="`mask_ratio`: a model of type vit has no such setting"):
        config_changes(Arguments(mask_ratio=0.5), ViTConfig, names)
    with pytest.raises(ValueError, match="`config_overrides` sets mask_ratio"):
        config_changes(given, ViTConfig, names)


def test_the_configuration_that_is_named_wins_over_the_checkpoint():
    assert ModelArguments().config_source is None
    assert ModelArguments(model_name_or_path="model").config_source == "model"
    assert ModelArguments(model_name_or_path="model", config_name="config").config_source == "config"


def test_a_configuration_is_no_source_of_weights(pretrained):
    assert load_config(ModelArguments(config_name=str(pretrained))).name_or_path == ""
    assert load_config(Arguments(model_name_or_path=str(pretrained))).name_or_path == str(pretrained)


def test_which_image_processor(config, tmp_path):
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "vit")
    CrateMaeImageProcessor.from_config(config, [0.4] * 3).save_pretrained(tmp_path / "crate_mae")
    augmentation = AugmentationArguments(image_mean=[0.1] * 3, image_std=[0.2] * 3)

    def build(**names):
        arguments = ModelArguments(**{name: str(tmp_path / folder) for name, folder in names.items()})
        return build_image_processor(arguments, config, augmentation)

    new = build()
    assert (new.image_mean, new.image_std, new.crop_size["height"]) == ((0.1,) * 3, (0.2,) * 3, 32)
    assert tuple(build(model_name_or_path="crate_mae").image_mean) == (0.4,) * 3
    named = build(model_name_or_path="crate_mae", image_processor_name="vit")
    assert isinstance(named, ViTImageProcessor)
    assert named.size["height"] == 24


def test_a_new_image_processor_needs_an_image_size():
    with pytest.raises(ValueError, match="`image_processor_name` is needed: a new resnet has no image size"):
        build_image_processor(ModelArguments(), ResNetConfig(), AugmentationArguments())
