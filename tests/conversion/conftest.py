"""An official checkpoint of a small CRATE-MAE."""

from pathlib import Path

import pytest
import torch
from official import make_official


@pytest.fixture
def official(config) -> dict[str, torch.Tensor]:
    return make_official(config)


@pytest.fixture
def checkpoint(official, tmp_path) -> Path:
    path = tmp_path / "official.pth"
    torch.save(official, path)
    return path
