"""examples/run_giga_mae.py as a user runs it, on small graphs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from crate_mae_hf.graphs import CrateGraphEncoder, GraphAttentionEncoder, targets
from crate_mae_hf.graphs.data import block_model, load_graph
from crate_mae_hf.graphs.evaluation import classify_nodes
from crate_mae_hf.graphs.training import embed

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "run_giga_mae.py"
RECIPES = sorted(path.name for path in (EXAMPLES / "recipes").glob("giga_mae_*.yaml"))
SHORT = ("--graph", "karate", "--epochs", 3, "--splits", 1)
ROWS = ["features", "topology target", "attribute target", "both targets", "before training"]
SMALL = {"attention": "head_size=4,hidden_size=8", "crate": "hidden_size=8,num_attention_heads=2"}
ENCODERS = {"attention": GraphAttentionEncoder, "crate": CrateGraphEncoder}


@pytest.fixture
def run(run_script, tmp_path):
    def run(*flags, encoder: str = "attention", output: str = "out") -> Path:
        kind = ("--encoder", encoder, "--config_overrides", SMALL[encoder])
        run_script(SCRIPT, "--output_dir", tmp_path / output, *SHORT, *kind, *flags)
        return tmp_path / output

    return run


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_a_run_leaves(run, encoder):
    out = run("--baseline", "true", encoder=encoder)
    metrics = read_metrics(out)
    assert metrics["graph"] == {"name": "karate", "nodes": 34, "edges": 78}
    assert metrics["settings"]["epochs"] == 3
    assert len(metrics["losses"]) == 3
    rows = {row["embeddings"]: row for row in metrics["results"]}
    assert list(rows) == [*ROWS, "masked features", "GiGaMAE"]
    figures = {"embeddings", "width", "accuracy", "accuracy_std", "nmi", "ari", "auc", "ap"}
    assert all(row.keys() == figures for row in rows.values())
    # The encoder that is saved is the one that was measured.
    graph = load_graph("karate", "unused")
    z = embed(ENCODERS[encoder].from_pretrained(out), graph)
    assert classify_nodes(z, graph.y, splits=1, seed=42)["accuracy"] == rows["GiGaMAE"]["accuracy"]
    picture = np.asarray(PIL.Image.open(out / "nodes.png").convert("RGB"))
    assert (picture != 255).any(axis=2).mean() > 0.01
    assert (out / "layers.csv").exists() == (encoder == "crate")
    if encoder == "crate":
        layers = json.loads((out / "layers.json").read_text())
        assert [row["layer"] for row in layers] == [1, 2]
        assert all(row["coding_rate"] > 0 and 0 < row["sparsity"] < 1 for row in layers)


def test_a_run_is_a_function_of_its_seed(run):
    flags = ("--epochs", 1, "--link_share", 0, "--graph", "sbm")
    first, again = run(*flags, output="first"), run(*flags, output="again")
    assert read_metrics(first) == read_metrics(again)
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    other = run(*flags, "--seed", 7, output="other")
    assert read_metrics(other)["losses"] != read_metrics(first)["losses"]
    assert read_metrics(other)["graph"] != read_metrics(first)["graph"]


def test_link_prediction_trains_without_what_it_predicts(run, monkeypatch):
    """Targets and encoder of the second training never see a held-out edge."""
    seen = []
    original = targets.to_dense_adj
    monkeypatch.setattr(
        targets, "to_dense_adj", lambda edges, **flags: (seen.append(edges.shape[1]), original(edges, **flags))[1]
    )
    run()
    assert seen == [156, 140]


def test_a_folder_without_classes_is_measured_by_its_links_alone(run, tmp_path):
    graph = block_model(num_blocks=2, block_size=20, within=0.3, num_features=4)
    folder = tmp_path / "graph"
    folder.mkdir()
    np.savetxt(folder / "edges.csv", graph.edge_index.T.numpy(), fmt="%d", delimiter=",")
    np.savetxt(folder / "features.csv", graph.x.numpy(), delimiter=",")
    out = run("--graph", folder)
    assert all(row.keys() == {"embeddings", "width", "auc", "ap"} for row in read_metrics(out)["results"])
    assert (out / "nodes.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--graph", "nowhere"), "`graph` must be"),
        (("--graph", "sbm", "--memory_limit", "0.001"), "`graph` has 400 nodes, whose pairs take about 0.01"),
        (("--epochs", 0), "`epochs` must be at least 1, got 0"),
        (("--learning_rate", 0), "`learning_rate` must be positive"),
        (("--node_ratio", 1), r"`node_ratio` must lie in [0, 1), got 1.0"),
        (("--temperature", -1), "`temperature` must be positive, got -1.0"),
        (("--weights", 1, 2, 3), "`weights` must be nine"),
        (("--attribute_share", 0), r"`attribute_share` must lie in (0, 1], got 0.0"),
        (("--topology_size", 99), "`topology_size` must lie between 1 and the number of nodes (34), got 99"),
        (("--train_share", 0.99), "`train_share` 0.99 leaves 33 of 34 nodes"),
        (("--link_share", 0.001), "`link_share` 0.001 holds out 0 of 78 edges"),
        (("--config_overrides", "depth=3"), "`config_overrides` sets depth"),
        (("--config_overrides", "dropout=2.0"), "`dropout` must lie in [0, 1), got 2.0"),
    ],
)
def test_bad_settings_end_in_one_line(run, tmp_path, flags, message):
    with pytest.raises(SystemExit) as error:
        run(*flags)
    assert str(error.value).startswith("error: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        run()


def test_the_command_itself_says_one_line_of_what_is_wrong(tmp_path):
    (tmp_path / "edges.csv").write_text("0,1\n1,1\n")
    np.savetxt(tmp_path / "features.csv", np.eye(3), delimiter=",")
    command = [sys.executable, SCRIPT, "--graph", tmp_path, "--output_dir", tmp_path / "out"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: `graph` has self-loops, the first at node 1")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(run_script, tmp_path, name):
    """On another graph and shortly."""
    recipe = EXAMPLES / "recipes" / name
    run_script(SCRIPT, recipe, *SHORT, "--epochs", 1, "--topology_size", 8, "--output_dir", tmp_path / "out")
    assert read_metrics(tmp_path / "out")["results"][-1]["embeddings"] == "GiGaMAE"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [42, 1])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_learns_more_than_fresh_weights_and_than_each_of_its_targets_knows(run_script, tmp_path, encoder, seed):
    """On a block model that the seed draws, by the recipe."""
    recipe = EXAMPLES / "recipes" / f"giga_mae_sbm_{encoder}.yaml"
    flags = ("--seed", seed, "--link_share", 0)
    run_script(SCRIPT, recipe, *flags, "--output_dir", tmp_path / "out")
    accuracy = {row["embeddings"]: row["accuracy"] for row in read_metrics(tmp_path / "out")["results"]}
    for name in ("before training", "topology target", "attribute target"):
        assert accuracy["GiGaMAE"] > accuracy[name] + 0.08, name
