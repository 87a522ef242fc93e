"""examples/notebooks/crate_mae.ipynb: what is stored, and that it runs, from the root and from its own folder."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from snippets import ROOT

NOTEBOOK = ROOT / "examples" / "notebooks" / "crate_mae.ipynb"


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def has_picture(cell: dict) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell["outputs"])


def read_figure(notebook: dict, name: str) -> float:
    texts = ["".join(output.get("text", "")) for cell in code_cells(notebook) for output in cell["outputs"]]
    (value,) = re.findall(rf"{name}: ([\d.]+)", "\n".join(texts))
    return float(value)


def test_what_is_stored():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1.5e6
    assert str(Path.home()) not in text
    stored = json.loads(text)
    cells = code_cells(stored)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert set(kinds) == {"stream", "execute_result"}  # no error
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell["outputs"])
    assert all(cell["outputs"] for cell in cells)
    assert sum(map(has_picture, cells)) == 5


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own parts
@pytest.mark.parametrize("folder", [".", "examples/notebooks"])
def test_it_runs_from_top_to_bottom(tmp_path, folder):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for path in ("examples/notebooks/crate_mae.ipynb", "examples/data/fashion_mnist_sample"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        copy(ROOT / path, tmp_path / path)
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    notebook = nbformat.read(tmp_path / "examples" / "notebooks" / "crate_mae.ipynb", as_version=4)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    resources = {"metadata": {"path": str(tmp_path / folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute(env=environment)
    for cell, before in zip(code_cells(notebook), code_cells(stored), strict=True):
        assert has_picture(cell) == has_picture(before)
    assert read_figure(notebook, "masked error") == pytest.approx(read_figure(stored, "masked error"), abs=2e-3)
