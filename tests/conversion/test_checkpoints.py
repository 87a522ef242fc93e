"""Files that are no official checkpoints say what they are, and nothing in them is run."""

import os
import re

import pytest
import torch
from safetensors.torch import save_file

from crate_mae_hf.conversion import convert_checkpoint
from crate_mae_hf.conversion.__main__ import main
from crate_mae_hf.registry import MODELS


class Code:
    """Runs a command when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncate_old_format(path, official, length):
    torch.save(official, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:length])


def flip(path):
    """Change one bit in the middle of a file, where the weights are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def spoil(path, official):
    """Write each kind of bad checkpoint, as (function, what the message has to say)."""
    width = official["cls_token"].shape[2]
    vit = {"blocks.0.attn.qkv.weight": torch.zeros(3 * width, width), "cls_token": official["cls_token"]}
    vit_pytorch = {
        "pos_embedding": torch.zeros(1, 17, width),
        "transformer.layers.0.0.to_qkv.weight": torch.zeros(width),
    }
    crate = {"pos_embedding": torch.zeros(1, 17, width), "to_patch_embedding.1.weight": torch.zeros(width)}
    without = {key: value for key, value in official.items() if key != "blocks.1.layers.0.1.fn.weight"}
    return {
        "missing file": (lambda: None, "does not exist"),
        "truncated": (lambda: path.write_bytes(path.read_bytes()[:-2000]), "is cut short: the end of the archive"),
        "flipped bit": (lambda: flip(path), "is damaged: the checksum of .* is wrong"),
        "web page": (lambda: path.write_text("<!DOCTYPE html><html>"), "web page"),
        "empty": (lambda: path.write_bytes(b""), "damaged, cut short"),
        "old format, truncated": (lambda: truncate_old_format(path, official, 2000), "damaged, cut short"),
        "old format, truncated late": (lambda: truncate_old_format(path, official, -100), "damaged, cut short"),
        "code": (lambda: torch.save({"model": Code(path.with_name("pwned"))}, path), r"may run code .*mkdir"),
        "numbers": (lambda: torch.save({"model": [1, 2]}, path), "no state dict.*got the keys model"),
        "twice": (
            lambda: torch.save({**official, "module.norm.bias": torch.zeros(width)}, path),
            r"holds `norm\.bias` more than once, .*`module\.norm\.bias`",
        ),
        "vit_mae": (lambda: torch.save({"model": vit}, path), "ViT or ViTMAE in the layout of MAE"),
        "hf vit_mae": (lambda: torch.save({"vit.embeddings.cls_token": official["cls_token"]}, path), "Transformers"),
        "vit-pytorch": (lambda: torch.save(vit_pytorch, path), "ViT in the layout of vit-pytorch"),
        "part of a CRATE": (lambda: torch.save(crate, path), "no `to_patch_embedding.2.weight`.*supervised CRATE"),
        "another": (
            lambda: torch.save({"conv1.weight": torch.zeros(4), "fc.bias": torch.zeros(4)}, path),
            "not one of CRATE-MAE; it has the keys conv1, fc",
        ),
        "missing": (lambda: torch.save(without, path), r"missing +blocks\.1\.layers\.0\.1\.fn\.weight .* 1$"),
        "unknown": (lambda: torch.save(official | {"norm2.bias": torch.zeros(1)}, path), r"unknown +norm2\.bias"),
        "shape": (
            lambda: torch.save(official | {"norm.bias": torch.zeros(31)}, path),
            r"wrong shape +norm\.bias +got \(31,\), needs \(32,\)",
        ),
        "positions": (
            lambda: torch.save(official | {"decoder_pos_embed": torch.randn(1, 17, width)}, path),
            "fixed sine-cosine table",
        ),
    }


@pytest.mark.parametrize("kind", spoil(None, {"cls_token": torch.zeros(1, 1, 32)}))
def test_bad_checkpoints_say_what_they_are(kind, official, checkpoint, tmp_path, capsys):
    make, message = spoil(checkpoint, official)[kind]
    if kind == "missing file":
        checkpoint.unlink()
    make()
    with pytest.raises(SystemExit, match=re.compile(f"^error: .*{message}", re.DOTALL | re.MULTILINE)):
        main([str(checkpoint), str(tmp_path / "out"), "--num_attention_heads", "4"])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "pwned").exists()


def test_bad_safetensors(tmp_path, official):
    path = tmp_path / "official.safetensors"
    save_file(official, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"is cut short: it ends before its last tensor"):
        convert_checkpoint(path, tmp_path / "out", num_attention_heads=4)


@pytest.mark.parametrize("model_type", MODELS)
def test_our_own_weights_need_no_conversion(model_type, checkpoint, tmp_path):
    torch.save({f"{model_type}.layernorm.weight": torch.zeros(4)}, checkpoint)
    with pytest.raises(ValueError, match="is in this package's layout already"):
        convert_checkpoint(checkpoint, tmp_path / "out", num_attention_heads=4)
