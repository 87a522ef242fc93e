import numpy as np
import pytest
import torch

from crate_mae_hf import CrateMaeImageProcessor, CrateMaeModel
from crate_mae_hf.evaluation import cache as module
from crate_mae_hf.evaluation.cache import FeatureCache, digest_bytes, digest_tensors, feature_settings

FEATURES = {"cls": np.arange(6, dtype=np.float32).reshape(2, 3), "mean": np.ones((2, 3), np.float32)}
SETTINGS = {"layer": -1, "weights": "abc"}


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def compute():
    """Counts how often it is called."""

    def compute():
        compute.calls += 1
        return FEATURES

    compute.calls = 0
    return compute


def assert_same(found):
    assert found.keys() == FEATURES.keys()
    for name, values in FEATURES.items():
        np.testing.assert_array_equal(found[name], values)


def test_computed_once(cache, compute):
    for _ in range(2):
        assert_same(cache.get(SETTINGS, compute))
    assert compute.calls == 1
    cache.get({**SETTINGS, "layer": 1}, compute)
    assert compute.calls == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_computed_again(cache, compute, damage, caplog):
    cache.get(SETTINGS, compute)
    path = cache.path(SETTINGS)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    path.write_bytes({"cut": content[:-5], "flip": content, "empty": b""}[damage])
    assert_same(cache.get(SETTINGS, compute))
    assert compute.calls == 2
    assert "are damaged" in caplog.text
    assert_same(cache.get(SETTINGS, compute))
    assert compute.calls == 2


def test_an_interrupted_write_leaves_nothing(cache, compute, monkeypatch):
    def interrupted(arrays, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.get(SETTINGS, compute)
    assert list(cache.folder.iterdir()) == []
    assert_same(cache.get(SETTINGS, compute))
    assert compute.calls == 2


def test_results_survive_a_full_disk(cache, compute, monkeypatch, caplog):
    def full(arrays, name, metadata):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    assert_same(cache.get(SETTINGS, compute))
    assert "could not be kept" in caplog.text
    assert list(cache.folder.iterdir()) == []


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`feature_cache_dir`: cannot make the folder"):
        FeatureCache(tmp_path / "file")


def test_every_dependency_changes_the_place(cache, config):
    processor = CrateMaeImageProcessor.from_config(config)

    def path(model, processor=processor, data="data", layer=-1, norm=None, with_grid=True):
        return cache.path(feature_settings(model, processor, data, layer, norm, with_grid))

    model = CrateMaeModel(config)
    first = path(model)
    assert path(model) == first
    others = [path(model, data="other"), path(model, layer=1), path(model, norm=False), path(model, with_grid=False)]
    others.append(path(model, CrateMaeImageProcessor.from_config(config, image_mean=[0.1, 0.2, 0.3])))
    others.append(path(CrateMaeModel(config)))
    with torch.no_grad():
        model.layers[0].ista.dictionary[0, 0] += 1e-3
    others.append(path(model))
    others.append(path(model.to(torch.bfloat16)))
    model.config.ista_lambda = 0.25  # no weight
    others.append(path(model))
    assert len({first, *others}) == 1 + len(others)


def test_digests():
    assert digest_bytes([b"ab", b"c"]) != digest_bytes([b"a", b"bc"])
    tensor = torch.arange(6.0)
    digests = [{"a": tensor}, {"b": tensor}, {"a": tensor.view(2, 3)}, {"a": tensor.int()}, {"a": tensor.bfloat16()}]
    assert len({digest_tensors(tensors) for tensors in digests}) == 5
    assert digest_tensors({"a": tensor, "b": tensor}) == digest_tensors({"b": tensor.clone(), "a": tensor})
    assert digest_tensors({"a": torch.tensor(1.0)}) != digest_tensors({"a": torch.tensor(2.0)})


def test_the_code_of_the_layers_counts(config, tmp_path, monkeypatch):
    """A model's file may import the ones beside it, which decide the features as much."""
    (tmp_path / "modeling_toy.py").write_text(
        "from crate_mae_hf import CrateMaeModel\n\n\nclass ToyModel(CrateMaeModel):\n"
        "    def helper(self):\n        from .helper import SCALE\n        return SCALE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from modeling_toy import ToyModel

    def code() -> str:
        return feature_settings(ToyModel(config), CrateMaeImageProcessor(), "data", -1, None)["code"]

    digests = set()
    for helper in (None, "SCALE = 1", "SCALE = 2"):
        if helper is not None:
            (tmp_path / "helper.py").write_text(helper)
        digests.add(code())
    assert len(digests) == 3
