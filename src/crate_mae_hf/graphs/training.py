"""Training of a graph encoder, all nodes at once; and a baseline that predicts masked features themselves."""

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Data
from tqdm import tqdm
from transformers import PreTrainedModel

from ..adapters import inference
from .giga_mae import GigaMae, GigaMaeOutput, GraphMasks, Projector, Targets, draw_masks


class MaskedFeatures(nn.Module):
    """Baseline: predict the features of masked nodes, by the mean squared error.

    Args:
        encoder: As for [`GigaMae`].
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(encoder.config.hidden_size, encoder.config.num_features)

    def forward(self, data: Data, targets: Targets, masks: GraphMasks) -> GigaMaeOutput:
        """Return the loss over the masked nodes; there are no other targets than the features."""
        errors = F.mse_loss(self.projector(self.encoder(*masks.hide(data))), data.x, reduction="none").mean(dim=1)
        return GigaMaeOutput(loss=(errors * masks.nodes).sum() / masks.nodes.sum().clamp(min=1))


def fit(
    objective: GigaMae | MaskedFeatures,
    data: Data,
    targets: Targets,
    epochs: int = 150,
    learning_rate: float = 1e-3,
    learning_rate_decay: float = 0.8,
    decay_epochs: int = 200,
    node_ratio: float = 0.5,
    edge_ratio: float = 0.5,
    seed: int = 0,
) -> list[float]:
    """Train by Adam on the whole graph, with new masks in every epoch.

    Args:
        objective: Trained in place; dropout draws from PyTorch's own generator.
        data: The graph.
        targets: E_1 and E_2.
        epochs: Number of steps.
        learning_rate: Of Adam.
        learning_rate_decay: What the learning rate is multiplied by every `decay_epochs` epochs.
        decay_epochs: See there.
        node_ratio: Probability that a node's features are zeroed.
        edge_ratio: Probability that a directed edge is dropped.
        seed: Draws the masks.

    Returns:
        The loss of each epoch.

    Raises:
        ValueError: If the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(objective.parameters(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, decay_epochs, learning_rate_decay)
    losses = []
    objective.train()
    for epoch in tqdm(range(epochs), desc="Training", disable=None):
        loss = objective(data, targets, draw_masks(data, node_ratio, edge_ratio, generator)).loss
        losses.append(loss.item())
        if not loss.isfinite():
            raise ValueError(f"The loss is {losses[-1]} in epoch {epoch + 1}: lower `learning_rate` ({learning_rate}).")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return losses


def embed(encoder: PreTrainedModel, data: Data) -> torch.Tensor:
    """Return the encoder's features of all nodes, `(N, d)`, with nothing masked."""
    with inference(encoder):
        return encoder(data.x, data.edge_index)
