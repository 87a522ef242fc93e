"""Dense models of Transformers on our backbones: images of any size, losses, and nothing lost by saving."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DetrConfig,
    DetrForObjectDetection,
    DPTConfig,
    DPTForDepthEstimation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from crate_mae_hf.registry import MODELS, ModelRow

SIZES = [(32, 32), (48, 64), (45, 60)]  # the model's own, another, and one that patches of 8 do not fill
SMALL_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
}


class Consumer(NamedTuple):
    """A dense model, and what it is trained with."""

    build: Callable[..., PreTrainedModel]  # of the backbone's configuration
    labels: Callable[[int, int], dict]  # of height and width, for two images
    takes_maps: bool = True


def build_upernet(backbone):
    config = UperNetConfig(backbone_config=backbone, num_labels=3, hidden_size=16, auxiliary_in_channels=32)
    return UperNetForSemanticSegmentation(config)


def build_mask_former(backbone):
    # Its decoder has a configuration of another backbone inside, which it never builds.
    decoder = DetrConfig(**SMALL_DETR, backbone_config=backbone, use_timm_backbone=False, backbone=None)
    config = MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, num_labels=3
    )
    return MaskFormerForInstanceSegmentation(config)


def build_detr(backbone):
    config = DetrConfig(**SMALL_DETR, backbone_config=backbone, use_timm_backbone=False, backbone=None, num_labels=3)
    return DetrForObjectDetection(config)


def build_depth_anything(backbone):
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    return DepthAnythingForDepthEstimation(config)


def build_dpt(backbone):
    config = DPTConfig(
        backbone_config=backbone,
        hidden_size=32,
        num_attention_heads=4,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        add_projection=False,
    )
    return DPTForDepthEstimation(config)


def segments(height, width):
    return {"labels": torch.randint(3, (2, height, width))}


def boxes(height, width):
    box = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    return {"labels": [box, box]}


def instances(height, width):
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2] = 1
    return {"mask_labels": [mask, mask], "class_labels": [torch.tensor([1]), torch.tensor([2])]}


CONSUMERS = {
    "UperNet": Consumer(build_upernet, segments),
    "MaskFormer": Consumer(build_mask_former, instances),
    "DETR": Consumer(build_detr, boxes),
    "DepthAnything": Consumer(build_depth_anything, lambda height, width: {}, takes_maps=False),
    "DPT": Consumer(build_dpt, lambda height, width: {}, takes_maps=False),
}


def build(row: ModelRow, name: str) -> PreTrainedModel:
    backbone = row.config_class(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=CONSUMERS[name].takes_maps,
    )
    torch.manual_seed(0)
    return CONSUMERS[name].build(backbone)


@pytest.mark.parametrize("row", MODELS.values(), ids=lambda row: row.name)
@pytest.mark.parametrize("name", CONSUMERS)
@pytest.mark.parametrize("size", SIZES)
def test_any_image_size(row, name, size):
    model = build(row, name)
    outputs = model(torch.rand(2, 3, *size), **CONSUMERS[name].labels(*size))
    loss = outputs[0].mean()  # the loss, or the depth
    assert torch.isfinite(loss)
    loss.backward()
    backbone = {name: weight for name, weight in model.named_parameters() if ".ista." in name}
    gradients = [weight.grad for weight in backbone.values() if weight.requires_grad]
    assert gradients
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("row", MODELS.values(), ids=lambda row: row.name)
@pytest.mark.parametrize("name", CONSUMERS)
def test_no_weight_is_lost_by_saving(row, name, tmp_path):
    model = build(row, name)
    with torch.no_grad():
        for weight in model.parameters():  # none is what it starts from
            weight += 0.01
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
