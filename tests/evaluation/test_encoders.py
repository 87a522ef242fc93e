import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from crate_mae_hf import CrateMaeForPreTraining
from crate_mae_hf.evaluation import encoders
from crate_mae_hf.evaluation.cache import digest_tensors
from crate_mae_hf.evaluation.encoders import fastest_dtype, load_encoder, random_encoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


def test_the_encoder_of_a_pre_trained_model(config, tmp_path):
    model = CrateMaeForPreTraining(config)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert not encoder.training
    assert digest_tensors(encoder.state_dict()) == digest_tensors(model.crate_mae.state_dict())
    assert load_encoder(str(tmp_path), torch.bfloat16).dtype == torch.bfloat16


def test_a_missing_pooler_does_not_change_the_weights(tmp_path):
    ViTForImageClassification(ViTConfig(**SIZES)).save_pretrained(tmp_path)
    first, second = (digest_tensors(load_encoder(str(tmp_path)).state_dict()) for _ in range(2))
    assert first == second


def test_missing_weights_are_an_error(config, tmp_path):
    CrateMaeForPreTraining(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["crate_mae.layers.1.ista.dictionary"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of CrateMaeModel, among them layers\.1\.ista\.dictionary"):
        load_encoder(str(tmp_path))


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match="cannot load no/such/folder: there is no such folder"):
        load_encoder("no/such/folder")
    bert = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertModel(bert).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a BertModel, which takes `input_ids`"):
        load_encoder(str(tmp_path))


def test_fresh_weights_depend_on_the_seed_alone(config):
    state = torch.get_rng_state()
    first, again, other = (digest_tensors(random_encoder(config, seed).state_dict()) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fresh_vit_mae_has_positions():
    model = random_encoder(ViTMAEConfig(**SIZES), seed=0)
    table = build_2d_sinusoidal_position_embedding(4, 4, 32, cls_token=True)
    rotated = torch.cat([table[:, 16:], table[:, :16]], dim=1)  # the order of MAE's own code, columns first
    torch.testing.assert_close(model.embeddings.position_embeddings[0], rotated)
    assert model.embeddings.cls_token.std() > 0


def test_a_vit_mae_without_positions_is_pointed_out(tmp_path, caplog):
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, decoder_num_hidden_layers=1))
    model.vit.embeddings.position_embeddings.data.zero_()
    model.save_pretrained(tmp_path)
    load_encoder(str(tmp_path))
    assert "positions are all zero" in caplog.text
    assert isinstance(AutoModel.from_pretrained(tmp_path), type(model.vit))


@pytest.mark.parametrize("faster", [torch.float32, torch.bfloat16])
def test_the_type_is_that_of_the_faster_product(monkeypatch, faster):
    """By a clock that goes on at every product, and faster at those of the other type."""
    now, product = [0.0], torch.Tensor.__matmul__

    def count(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        now[0] += 1 if first.dtype == faster else 2
        return product(first, second)

    monkeypatch.setattr(torch.Tensor, "__matmul__", count)
    monkeypatch.setattr(encoders.time, "perf_counter", lambda: now[0])
    assert fastest_dtype("cpu", size=8) == faster
