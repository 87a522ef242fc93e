#!/usr/bin/env python
# /// script
# dependencies = ["crate-mae-hf[graphs,figures]"]
# ///
"""Pre-train an encoder of a graph by GiGaMAE, and measure what its features of the nodes are good for.

    python examples/run_giga_mae.py --graph karate
    python examples/run_giga_mae.py examples/recipes/giga_mae_sbm_crate.yaml --seed 1
    python examples/run_giga_mae.py examples/recipes/giga_mae_cora.yaml

Arguments come as flags, or as a JSON or YAML file followed by flags that win over it. Leaves in the output folder the
encoder (`config.json`, `model.safetensors`), `metrics.json` with what it, its targets, the raw features and the encoder
before training give, and a picture of the nodes before and after training; of CRATE's layers also `layers.csv`.
Link prediction trains a second time, on the graph without the edges that it holds out.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from crate_mae_hf.analysis import observe_layers
from crate_mae_hf.cli import check_output_dir, clear_errors, parse_arguments, parse_overrides
from crate_mae_hf.graphs import (
    CrateGraphConfig,
    CrateGraphEncoder,
    Data,
    GigaMae,
    GraphAttentionConfig,
    GraphAttentionEncoder,
    attribute_target,
    node2vec_target,
    topology_target,
)
from crate_mae_hf.graphs.data import check_graph, load_graph
from crate_mae_hf.graphs.evaluation import (
    classify_nodes,
    cluster_nodes,
    count_train_nodes,
    hold_out_edges,
    predict_links,
)
from crate_mae_hf.graphs.figures import node_maps
from crate_mae_hf.graphs.training import MaskedFeatures, embed, fit
from crate_mae_hf.tables import Row, text_table, write_table

ENCODERS: dict[str, tuple[Any, Any]] = {
    "attention": (GraphAttentionConfig, GraphAttentionEncoder),
    "crate": (CrateGraphConfig, CrateGraphEncoder),
}
TOPOLOGY_SIZE = 64
BEFORE, AFTER = "before training", "GiGaMAE"


@dataclass
class GraphArguments:
    """Which graph, and where everything goes."""

    graph: str = field(
        default="sbm",
        metadata={
            "help": "karate, sbm (a stochastic block model that the seed draws), planetoid:Cora, amazon:Photo or "
            "another that PyTorch Geometric downloads, or a folder with edges.csv, features.csv and labels.csv."
        },
    )
    cache_dir: str = field(default=".cache/graphs", metadata={"help": "Where downloaded graphs are kept."})
    memory_limit: float = field(default=8.0, metadata={"help": "What pairs of nodes may take of memory, in GB."})
    output_dir: str = field(default="outputs/giga_mae", metadata={"help": "A new or empty folder."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Allow a folder with contents; files of the same name are replaced."}
    )
    seed: int = field(default=42, metadata={"help": "Decides everything that is drawn."})


@dataclass
class ModelArguments:
    """The encoder."""

    encoder: str = field(
        default="attention",
        metadata={"help": "Graph attention, as published, or CRATE's layers.", "choices": list(ENCODERS)},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": 'Changes to its configuration: "hidden_size=128,num_attention_heads=4".'}
    )


@dataclass
class TargetArguments:
    """What is reconstructed."""

    topology: Literal["walks", "node2vec"] = field(
        default="walks", metadata={"help": "Embed nodes by factorising walks, or by node2vec where that is installed."}
    )
    topology_size: int | None = field(
        default=None, metadata={"help": f"Width of it; {TOPOLOGY_SIZE}, or a quarter of the nodes if those are fewer."}
    )
    walk_steps: int = field(default=10, metadata={"help": "Steps of a walk."})
    attribute_share: float = field(
        default=0.8, metadata={"help": "Share of the features' variance that their components explain; 1 for all."}
    )


@dataclass
class TrainArguments:
    """How it is trained."""

    epochs: int = field(default=150, metadata={"help": "Steps, each with the whole graph."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of Adam."})
    learning_rate_decay: float = field(default=0.8, metadata={"help": "It is multiplied by this ..."})
    decay_epochs: int = field(default=200, metadata={"help": "... every so many epochs."})
    node_ratio: float = field(default=0.5, metadata={"help": "Probability that a node's features are masked."})
    edge_ratio: float = field(default=0.5, metadata={"help": "Probability that a directed edge is dropped."})


@dataclass
class ObjectiveArguments:
    """The loss."""

    temperature: float = field(default=0.7, metadata={"help": "tau."})
    weights: list[float] = field(
        default_factory=lambda: [4.0, 1.0, 1.0, 1.0, 4.0, 1.0, 2.0, 2.0, -1.0],
        metadata={
            "help": "Weights of topology, attributes and both: where edges are masked, where features are, where both."
        },
    )


@dataclass
class EvaluationArguments:
    """What is measured."""

    train_share: float = field(default=0.1, metadata={"help": "Share of the labels that classifiers know."})
    splits: int = field(default=20, metadata={"help": "How often these are drawn."})
    link_share: float = field(default=0.1, metadata={"help": "Share of the edges to predict; 0 leaves that out."})
    baseline: bool = field(default=False, metadata={"help": "Also train to predict masked features themselves."})


def check_arguments(
    graph_args: GraphArguments,
    train_args: TrainArguments,
    objective_args: ObjectiveArguments,
    evaluation_args: EvaluationArguments,
) -> None:
    """Raise ValueError if a setting cannot be meant, before anything is loaded."""
    check_output_dir(Path(graph_args.output_dir), graph_args.overwrite_output_dir)
    for args, name in ((train_args, "epochs"), (train_args, "decay_epochs"), (evaluation_args, "splits")):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(args, name)}.")
    for name in ("learning_rate", "learning_rate_decay"):
        if not getattr(train_args, name) > 0:
            raise ValueError(f"`{name}` must be positive, got {getattr(train_args, name)}.")
    for args, name in ((train_args, "node_ratio"), (train_args, "edge_ratio"), (evaluation_args, "link_share")):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(args, name)}.")
    if not objective_args.temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {objective_args.temperature}.")
    if len(objective_args.weights) != 9:
        raise ValueError(f"`weights` must be nine, three targets for three sets, got {len(objective_args.weights)}.")


def make_targets(args: TargetArguments, data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of topology and attributes."""
    size = args.topology_size or min(TOPOLOGY_SIZE, max(data.num_nodes // 4, 1))
    make_topology = node2vec_target if args.topology == "node2vec" else topology_target
    if not 0 < args.attribute_share <= 1:
        raise ValueError(f"`attribute_share` must lie in (0, 1], got {args.attribute_share}.")
    return make_topology(data, size, args.walk_steps), attribute_target(data, args.attribute_share)


@dataclass
class Run:
    """All that training needs besides the graph: from the same seed, the same encoder for every objective."""

    model_args: ModelArguments
    target_args: TargetArguments
    train_args: TrainArguments
    objective_args: ObjectiveArguments
    baseline: bool
    seed: int

    def build_encoder(self, num_features: int) -> PreTrainedModel:
        """Return the encoder with fresh weights."""
        config_class, encoder_class = ENCODERS[self.model_args.encoder]
        overrides = parse_overrides(self.model_args.config_overrides, config_class)
        set_seed(self.seed)
        return encoder_class(config_class(**{"num_features": num_features, **overrides}))

    def train(self, data: Data) -> tuple[PreTrainedModel, dict[str, torch.Tensor], list[float]]:
        """Return the trained encoder, embeddings of all kinds by name, and the losses."""
        set_seed(self.seed)
        targets = make_targets(self.target_args, data)
        encoder = self.build_encoder(data.num_features)
        embeddings = {"features": data.x, "topology target": targets[0], "attribute target": targets[1]}
        embeddings |= {"both targets": torch.cat(targets, dim=1), BEFORE: embed(encoder, data)}
        settings = {**asdict(self.train_args), "seed": self.seed}
        if self.baseline:
            baseline = MaskedFeatures(self.build_encoder(data.num_features))
            fit(baseline, data, targets, **settings)
            embeddings["masked features"] = embed(baseline.encoder, data)
        weights = torch.tensor(self.objective_args.weights).view(3, 3).tolist()
        set_seed(self.seed)
        topology_size, attribute_size = (target.shape[1] for target in targets)
        objective = GigaMae(encoder, topology_size, attribute_size, self.objective_args.temperature, weights)
        losses = fit(objective, data, targets, **settings)
        return encoder, {**embeddings, AFTER: embed(encoder, data)}, losses


def evaluate(
    run: Run,
    args: EvaluationArguments,
    data: Data,
    held_out: tuple[Data, torch.Tensor, torch.Tensor] | None,
    embeddings: dict[str, torch.Tensor],
) -> list[Row]:
    """Return a row for each kind of embeddings; of link prediction, of those made without the edges to predict."""
    rows: dict[str, Row] = {name: {"embeddings": name, "width": matrix.shape[1]} for name, matrix in embeddings.items()}
    if data.y is not None:
        for name, matrix in embeddings.items():
            rows[name] |= classify_nodes(matrix, data.y, args.train_share, args.splits, run.seed)
            rows[name] |= cluster_nodes(matrix, data.y, run.seed)
    if held_out:
        rest, edges, others = held_out
        for name, matrix in run.train(rest)[1].items():
            rows[name] |= predict_links(matrix, edges, others)
    return list(rows.values())


def main() -> None:
    """Train, measure, and write everything."""
    graph_args, model_args, target_args, train_args, objective_args, evaluation_args = parse_arguments(
        (GraphArguments, ModelArguments, TargetArguments, TrainArguments, ObjectiveArguments, EvaluationArguments)
    )
    check_arguments(graph_args, train_args, objective_args, evaluation_args)
    data = load_graph(graph_args.graph, graph_args.cache_dir, graph_args.seed)
    check_graph(data, graph_args.memory_limit)
    held_out = hold_out_edges(data, evaluation_args.link_share, graph_args.seed) if evaluation_args.link_share else None
    if data.y is not None:
        count_train_nodes(data.y, evaluation_args.train_share)
    run = Run(model_args, target_args, train_args, objective_args, evaluation_args.baseline, graph_args.seed)
    encoder, embeddings, losses = run.train(data)
    rows = evaluate(run, evaluation_args, data, held_out, embeddings)

    output_dir = Path(graph_args.output_dir)
    encoder.save_pretrained(output_dir)
    settings = [asdict(args) for args in (model_args, target_args, train_args, objective_args, evaluation_args)]
    metrics = {
        "graph": {"name": graph_args.graph, "nodes": data.num_nodes, "edges": data.num_edges // 2},
        "seed": graph_args.seed,
        "settings": {name: value for group in settings for name, value in group.items()},
        "parameters": encoder.num_parameters(),
        "losses": losses,
        "results": rows,
    }
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    node_maps({name: embeddings[name] for name in (BEFORE, AFTER)}, data).savefig(output_dir / "nodes.png", dpi=110)
    if model_args.encoder == "crate":
        report = observe_layers(encoder, lambda: encoder(data.x, data.edge_index))
        layers = [{"layer": row["layer"], **{n: row[f"{n}_mean"] for n in report.encoder}} for row in report.table()]
        write_table(layers, output_dir / "layers")
    print(text_table(rows), f"\nWritten to {output_dir}")


if __name__ == "__main__":
    logging.set_verbosity_warning()
    with clear_errors():
        main()
