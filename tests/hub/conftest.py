"""A Hub that records what it gets, and small saved models; nothing here talks to the real one."""

from collections import namedtuple
from concurrent.futures import Future
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from saving import save

from crate_mae_hf.registry import MODELS


class FakeApi:
    """Records what would go to the Hub."""

    def __init__(self, token=None):
        self.token = token
        self.uploads: list[set[str]] = []
        self.calls: list[str] = []
        self.role = "write"
        self.error: Exception | None = None

    def whoami(self):
        self.calls.append("whoami")
        if self.error:
            raise self.error
        return {"name": "somebody", "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, repo_id, **kwargs):
        self.calls.append("create_repo")
        return RepoUrl(repo_id)

    def upload_folder(self, folder_path, ignore_patterns, **kwargs):
        self.calls.append("upload_folder")
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        self.uploads.append(set(filter_repo_objects(files, ignore_patterns=ignore_patterns)))
        future: Future = Future()
        future.set_result(None)
        return future

    def create_commit(self, operations, **kwargs):
        self.calls.append("create_commit")
        self.uploads.append({operation.path_in_repo for operation in operations})


class RepoUrl(namedtuple("RepoUrl", "repo_id")):
    def __str__(self):
        return f"https://huggingface.co/{self.repo_id}"


@pytest.fixture
def api(monkeypatch) -> FakeApi:
    api = FakeApi()
    monkeypatch.setattr("crate_mae_hf.hub.push.HfApi", lambda token: api)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: api)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: api)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: ModelCard("# Card"))
    return api


@pytest.fixture
def crate(tmp_path) -> Path:
    """A supervised CRATE."""
    save(MODELS["crate"], "AutoModelForImageClassification", tmp_path / "crate")
    return tmp_path / "crate"
