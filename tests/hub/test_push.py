"""Pushing: what is uploaded, and what is refused before anything is."""

import json
import shutil
from unittest.mock import Mock

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from saving import CODE, COMPLETE, every_saved_class, save
from snippets import snippets

from crate_mae_hf.hub import check_folder, push_folder
from crate_mae_hf.hub.__main__ import main


def test_everything_of_a_crate_is_pushed(crate, api):
    push_folder(crate, "somebody/crate")
    assert api.uploads == [COMPLETE | {"README.md"}]


def test_push_folder(pretrained, api):
    (pretrained / "checkpoint-5").mkdir()
    for name in ("checkpoint-5/model.safetensors", "training_args.bin", "metrics.json"):
        (pretrained / name).write_text("{}")
    assert push_folder(pretrained, "somebody/model") == "https://huggingface.co/somebody/model"
    assert api.calls == ["whoami", "create_repo", "upload_folder"]
    assert api.uploads == [COMPLETE | {"README.md", "metrics.json"}]
    assert "somebody/model" in (pretrained / "README.md").read_text()


def http_error(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("refused", response=Mock(status_code=status, headers={}))


@pytest.mark.parametrize(
    ("error", "role", "message"),
    [
        (LocalTokenNotFoundError("none"), "write", "`token` is needed to push, found none"),
        (http_error(401), "write", "`token` was rejected"),
        (None, "read", "`token` of somebody may only read"),
    ],
)
def test_a_bad_token_stops_before_anything_is_uploaded(error, role, message, pretrained, api):
    api.error, api.role = error, role
    before = sorted(pretrained.iterdir())
    with pytest.raises(ValueError, match=f"{message}.*nothing was uploaded"):
        push_folder(pretrained, "somebody/model")
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        main([str(pretrained), "somebody/model"])
    assert set(api.calls) == {"whoami"}
    assert sorted(pretrained.iterdir()) == before


def test_a_hub_that_is_down_is_no_bad_token(pretrained, api):
    api.error = http_error(503)
    with pytest.raises(HfHubHTTPError):
        push_folder(pretrained, "somebody/model")
    api.error = HTTPError("Name or service not known")
    with pytest.raises(ConnectionError, match=r"cannot be reached \(Name or service not known\)"):
        push_folder(pretrained, "somebody/model")
    assert set(api.calls) == {"whoami"}


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_an_incomplete_folder_is_not_pushed(name, pretrained, api):
    (pretrained / name).unlink()
    with pytest.raises(ValueError, match=r"`folder`.*save_pretrained") as raised:
        push_folder(pretrained, "somebody/model")
    assert name in str(raised.value)
    assert api.calls == []


IMPORTS = {
    "plainly": "from .{name} import something",
    "for types only": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .{name} import something",
    "late": "def function():\n    from .{name} import (\n        something,\n    )",
    "if it is there": "try:\n    from .{name} import something\nexcept ImportError:\n    pass",
}


@pytest.mark.parametrize("how", IMPORTS)
def test_a_missing_helper_file_is_named(how, pretrained):
    modeling, helper = pretrained / "modeling_crate_mae.py", pretrained / "helper.py"
    modeling.write_text(modeling.read_text() + "\n" + IMPORTS[how].format(name="helper"))
    with pytest.raises(ValueError, match=r"lacks helper\.py: save"):
        check_folder(pretrained)
    helper.write_text("import torch\n" + IMPORTS[how].format(name="helper_of_helper"))
    with pytest.raises(ValueError, match=r"lacks helper_of_helper\.py: save"):
        check_folder(pretrained)
    # Importing each other is no reason to go round in circles.
    (pretrained / "helper_of_helper.py").write_text(IMPORTS[how].format(name="helper"))
    check_folder(pretrained)


def test_all_that_is_missing_is_named(pretrained):
    for name in CODE:
        (pretrained / name).unlink()
    with pytest.raises(ValueError, match="lacks") as raised:
        check_folder(pretrained)
    assert "configuration_crate_mae.py, image_processing_crate_mae.py, modeling_crate_mae.py:" in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_folder_that_names_no_code_is_not_pushed(name, pretrained, api):
    content = json.loads((pretrained / name).read_text())
    del content["auto_map"]
    (pretrained / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"lacks an `auto_map` in {name}"):
        push_folder(pretrained, "somebody/model")
    assert api.calls == []


def test_code_of_the_user_is_asked_for(pretrained):
    content = json.loads((pretrained / "config.json").read_text())
    content["auto_map"]["AutoModelForPreTraining"] = "somebody/else--modeling_mine.Mine"
    (pretrained / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks modeling_mine\.py:"):
        check_folder(pretrained)


@every_saved_class
def test_what_is_saved_is_complete(row, auto_class, tmp_path):
    save(row, auto_class, tmp_path)
    check_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == COMPLETE


def test_snippets_on_sharing(pretrained, api, monkeypatch):
    # Folders of these names stand for the repository and for the output of a training run.
    folder = pretrained.parent
    shutil.copytree(pretrained, folder / "you" / "your-crate-mae")
    shutil.copytree(pretrained, folder / "outputs" / "crate-mae")
    monkeypatch.chdir(folder)
    names: dict = {}
    for snippet in snippets("docs/sharing.md"):
        exec(compile(snippet, "docs/sharing.md", "exec"), names)
    assert type(names["model"]).__name__ == "CrateMaeForPreTraining"
    assert "| weight decay | 0.05 |" in (folder / "outputs" / "crate-mae" / "README.md").read_text()
    assert api.uploads == [COMPLETE | {"README.md"}]


def test_push_by_command(pretrained, api, capsys):
    main([str(pretrained), "somebody/model", "--dataset", "zalando-datasets/fashion_mnist", "--license", "mit"])
    assert capsys.readouterr().out == "https://huggingface.co/somebody/model\n"
    card = ModelCard.load(pretrained / "README.md")
    assert card.data.license == "mit"
    (pretrained / "README.md").write_text("mine")
    with pytest.raises(SystemExit, match="is there already"):
        main([str(pretrained), "somebody/model", "--license", "mit"])
    main([str(pretrained), "somebody/model"])
    assert (pretrained / "README.md").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"cut"])
def test_weights_are_opened_before_a_push(content, pretrained, api):
    weights = pretrained / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500] if content == b"cut" else content)
    with pytest.raises(ValueError, match=r"`folder` .*model\.safetensors is (empty|a pointer|damaged)"):
        push_folder(pretrained, "somebody/model")
    assert not api.calls


def test_a_missing_shard_is_named(pretrained, api):
    name = "model-00002-of-00002.safetensors"
    index = {"weight_map": {"a": "model.safetensors", "b": name}}
    (pretrained / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"lacks {name}"):
        push_folder(pretrained, "somebody/model")


def test_nothing_is_written_before_the_token_is_good(pretrained, api):
    api.role = "read"
    with pytest.raises(SystemExit, match="may only read"):
        main([str(pretrained), "somebody/model", "--license", "mit"])
    assert not (pretrained / "README.md").exists()
    api.role = "write"
    main([str(pretrained), "somebody/model", "--license", "mit"])
    assert "license: mit" in (pretrained / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"README.md is there already"):
        main([str(pretrained), "somebody/model", "--license", "mit"])
