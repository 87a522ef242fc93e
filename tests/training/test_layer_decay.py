import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, BeitConfig, Dinov2Config, Dinov2WithRegistersConfig, ViTConfig

from crate_mae_hf import CrateMaeForImageClassification
from crate_mae_hf.training.layer_decay import apply_layer_decay, decays_weight, layer_indices

TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


def test_layers_of_crate_mae(config):
    indices = layer_indices(CrateMaeForImageClassification(config))
    assert {name for name, index in indices.items() if index == 0} == {
        "crate_mae.embeddings.cls_token",
        "crate_mae.embeddings.mask_token",
        "crate_mae.embeddings.patch_embeddings.projection.weight",
        "crate_mae.embeddings.patch_embeddings.projection.bias",
    }
    assert indices["crate_mae.layers.0.ista.dictionary"] == 1
    assert indices["crate_mae.layers.2.mssa.o_proj.bias"] == 3
    assert {name for name, index in indices.items() if index == 4} == {
        *(f"{module}.{name}" for module in ("crate_mae.layernorm", "classifier") for name in ("weight", "bias"))
    }


@pytest.mark.parametrize("config_class", [ViTConfig, Dinov2Config, Dinov2WithRegistersConfig, BeitConfig])
def test_layers_of_other_encoders(config_class):
    model = AutoModelForImageClassification.from_config(config_class(**TINY, intermediate_size=16))
    indices = layer_indices(model)
    assert set(indices.values()) == {0, 1, 2, 3, 4}
    assert {indices[name] for name in indices if name.startswith("classifier")} == {4}
    assert {indices[name] for name in indices if "embeddings." in name} == {0}
    assert all(indices[name] == 2 for name in indices if ".1." in name and "layer" in name and "embeddings" not in name)


def test_learning_rates_are_those_of_beit(config):
    model = CrateMaeForImageClassification(config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying = [parameter for parameter, name in names.items() if decays_weight(name, parameter)]
    others = [parameter for parameter, name in names.items() if not decays_weight(name, parameter)]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=2.0)
    apply_layer_decay(optimizer, model, 0.5)
    assert optimizer.param_groups[0]["lr"] == 2.0
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(names)
    assert rates["classifier.weight"] == rates["crate_mae.layernorm.bias"] == 2.0
    assert rates["crate_mae.layers.2.ista.dictionary"] == 2.0 * 0.5
    assert rates["crate_mae.layers.0.layernorm_before.weight"] == 2.0 * 0.5**3
    assert rates["crate_mae.embeddings.cls_token"] == 2.0 * 0.5**4
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, value in decay.items() if value} == {
        "crate_mae.embeddings.patch_embeddings.projection.weight",
        "classifier.weight",
        *(
            f"crate_mae.layers.{layer}.{name}"
            for layer in range(3)
            for name in ("mssa.subspace_proj.weight", "mssa.o_proj.weight", "ista.dictionary")
        ),
    }


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embeddings.cls_token", (1, 1, 8), False),
        ("embeddings.register_tokens", (1, 4, 8), False),
        ("embeddings.position_embeddings", (1, 5, 8), False),
        ("pos_embed", (1, 5, 8), False),
        ("encoder.layer.0.layer_scale1.lambda1", (8,), False),
        ("layers.0.mlp.fc1.weight", (8, 8), True),
        ("embeddings.patch_embeddings.projection.weight", (8, 3, 4, 4), True),
        ("token_mixer.weight", (8, 8), True),
    ],
)
def test_what_weight_decay_is_for(name, shape, expected):
    assert decays_weight(name, nn.Parameter(torch.zeros(shape))) is expected


def test_a_model_without_layers_is_named():
    with pytest.raises(ValueError, match="`layer_decay`: cannot tell the layers of Linear"):
        layer_indices(nn.Linear(2, 2))
