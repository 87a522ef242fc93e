"""The snippets of docs/tools.md, and what comes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from snippets import snippets
from transformers import AutoModel

from crate_mae_hf import CrateMaeConfig, CrateMaeForImageClassification, CrateMaeForPreTraining, CrateMaeModel
from crate_mae_hf.image_processing_crate_mae import CrateMaeImageProcessor

# PEFT reads a property of models by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> tuple[Path, dict]:
    """The folder in which the snippets ran, and their variables."""
    folder = tmp_path_factory.mktemp("tools")
    torch.manual_seed(0)
    config = CrateMaeConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    for model_class, name in (
        (CrateMaeForPreTraining, "crate-mae"),
        (CrateMaeForImageClassification, "crate-mae-classifier"),
    ):
        model_class(config).save_pretrained(folder / name)
    CrateMaeImageProcessor.from_config(config).save_pretrained(folder / "crate-mae")
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for snippet in snippets("docs/tools.md"):
            exec(snippet, names)
    return folder, names


@pytest.fixture(scope="module")
def expected(tools) -> torch.Tensor:
    folder, names = tools
    model = CrateMaeForImageClassification.from_pretrained(folder / "crate-mae-classifier")
    with torch.no_grad():
        return model(names["pixel_values"]).logits


def test_peft_adapts_subspaces_and_dictionaries(tools):
    folder, names = tools
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    for part in ("mssa.subspace_proj", "mssa.o_proj", "ista"):
        for layer in range(2):
            assert f"base_model.model.crate_mae.layers.{layer}.{part}.lora_A.weight" in saved
    assert isinstance(names["merged"], CrateMaeForImageClassification)


def test_peft_adapter_changes_the_dictionary_until_it_is_merged(tools):
    """With weights that are not zero, in evaluation, where the folded dictionary is kept between calls."""
    from peft import LoraConfig, get_peft_model

    folder, names = tools
    model = CrateMaeForImageClassification.from_pretrained(folder / "crate-mae-classifier").eval()
    pixel_values = names["pixel_values"]
    with torch.no_grad():
        plain = model(pixel_values).logits
        adapted = get_peft_model(
            model, LoraConfig(r=4, target_parameters=["ista.dictionary"], init_lora_weights=False)
        ).eval()
        changed = adapted(pixel_values).logits
        assert not torch.allclose(changed, plain, atol=1e-3)
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(pixel_values).logits, plain)
        torch.testing.assert_close(adapted.merge_and_unload()(pixel_values).logits, changed)


def test_quantised_linear_layers(tools, expected):
    quantized = tools[1]["quantized"]
    layer = quantized.crate_mae.layers[1]
    assert type(layer.mssa.subspace_proj).__name__ == type(layer.mssa.o_proj).__name__ == "QLinear"
    assert type(layer.ista.dictionary) is torch.nn.Parameter
    with torch.no_grad():
        difference = (quantized(tools[1]["pixel_values"]).logits - expected).abs().max()
    assert 0 < difference < 0.05 * expected.abs().max()


def test_offloaded_layers_give_the_same(tools, expected):
    _, names = tools
    assert names["offloaded"].crate_mae.layers[1].ista.dictionary.is_meta
    torch.testing.assert_close(names["logits"], expected)


def test_composite_models_hold_the_encoder(tools):
    _, names = tools
    encoder, pixel_values = names["encoder"], names["pixel_values"]
    for part in (names["captioner"].encoder, names["pair"].vision_model):
        assert isinstance(part, CrateMaeModel)
        assert all(torch.equal(value, part.state_dict()[name]) for name, value in encoder.state_dict().items())
    words = torch.tensor([[3, 4], [5, 6]])
    names["captioner"].config.update({"decoder_start_token_id": 0, "pad_token_id": 0})
    for loss in (
        names["captioner"](pixel_values=pixel_values, labels=words).loss,
        names["pair"](pixel_values=pixel_values, input_ids=words, return_loss=True).loss,
    ):
        loss.backward()
    assert names["captioner"].encoder.layers[0].ista.dictionary.grad.abs().sum() > 0
    assert names["pair"].vision_model.layers[0].ista.dictionary.grad.abs().sum() > 0


def test_sentence_transformers_takes_the_mean_of_all_tokens(tools):
    folder, names = tools
    pixel_values = CrateMaeImageProcessor.from_pretrained(folder / "crate-mae")(names["images"], return_tensors="pt")
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder / "crate-mae")(**pixel_values).last_hidden_state
    np.testing.assert_allclose(names["embeddings"], tokens.mean(dim=1), atol=1e-5)
