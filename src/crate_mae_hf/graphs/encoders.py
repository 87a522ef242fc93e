"""Encoders of graphs: the graph attention network of GiGaMAE, and CRATE's layers among the nodes of a graph."""

from typing import Any, ClassVar, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv
from torch_geometric.nn.dense.linear import Linear as GeometricLinear
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..crate_layers import CrateISTA, CrateLayer


class _GraphConfig(PreTrainedConfig):
    """Checks that both configurations need."""

    sizes: ClassVar[tuple[str, ...]] = ()
    rates: ClassVar[tuple[str, ...]] = ()

    def validate_architecture(self) -> None:
        """Check what types alone cannot; called by `strict`.

        Raises:
            ValueError: Naming the argument, its value and what it needs.
        """
        super().validate_architecture()
        for name in self.sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in self.rates:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(self, name)}.")

    def __post_init__(self, **kwargs: Any) -> None:
        # `strict` runs it again, but wraps what it raises in an error that is no ValueError.
        self.validate_architecture()
        super().__post_init__(**kwargs)


@strict
class GraphAttentionConfig(_GraphConfig):
    r"""Configuration of [`GraphAttentionEncoder`]; the defaults are GiGaMAE's for Cora.

    Args:
        num_features (`int`, *optional*, defaults to 1433):
            Number of features of a node.
        head_size (`int`, *optional*, defaults to 64):
            Width of each head of the first layer.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Number of heads of the first layer; the second has one.
        hidden_size (`int`, *optional*, defaults to 512):
            Width d of what the encoder gives.
        dropout (`float`, *optional*, defaults to 0.6):
            Dropout of each layer's input and of its attention.
    """

    model_type = "graph_attention"
    sizes = ("num_features", "head_size", "num_attention_heads", "hidden_size")
    rates = ("dropout",)

    num_features: int = 1433
    head_size: int = 64
    num_attention_heads: int = 4
    hidden_size: int = 512
    dropout: float | int = 0.6


@strict
class CrateGraphConfig(_GraphConfig):
    r"""Configuration of [`CrateGraphEncoder`].

    Args:
        num_features (`int`, *optional*, defaults to 1433):
            Number of features of a node.
        hidden_size (`int`, *optional*, defaults to 256):
            Width d of a token, and of what the encoder gives; a multiple of `num_attention_heads`.
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Number of layers: so many edges far a node sees.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Number K of subspaces of MSSA.
        ista_step_size (`float`, *optional*, defaults to 0.1):
            Step size eta of the sparsification step.
        ista_lambda (`float`, *optional*, defaults to 0.1):
            Sparsity weight lambda of the sparsification step.
        mssa_init_scale (`float`, *optional*, defaults to 3.0):
            How much a fresh layer takes over from a node's neighbours.
        layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the layer norms.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the attention probabilities.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of the features, and of MSSA's output.
    """

    model_type = "crate_graph"
    sizes = ("num_features", "hidden_size", "num_hidden_layers", "num_attention_heads")
    rates = ("attention_probs_dropout_prob", "hidden_dropout_prob")

    num_features: int = 1433
    hidden_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    ista_step_size: float | int = 0.1
    ista_lambda: float | int = 0.1
    mssa_init_scale: float | int = 3.0
    layer_norm_eps: float | int = 1e-5
    attention_probs_dropout_prob: float | int = 0.0
    hidden_dropout_prob: float | int = 0.0

    def validate_architecture(self) -> None:
        """See [`GraphAttentionConfig`]."""
        super().validate_architecture()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` ({self.hidden_size}), got {self.num_attention_heads}."
            )
        for name in ("ista_step_size", "mssa_init_scale", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not self.ista_lambda >= 0:
            raise ValueError(f"`ista_lambda` must not be negative, got {self.ista_lambda}.")


class GraphAttentionEncoder(PreTrainedModel):
    r"""The encoder of GiGaMAE: two layers of a graph attention network (Veličković et al., ICLR 2018).

        h = ELU(BatchNorm([head_1(x), ..., head_K(x)])),   z = ELU(head(h))
        head(x)_i = sum_j a_ij W x_j + b,   a_ij = softmax_j LeakyReLU(u·W x_j + v·W x_i)   over neighbours j and i

    In training there is dropout on each layer's input and its a.

    Args:
        config: Sizes and dropout.
    """

    config_class = GraphAttentionConfig
    config: GraphAttentionConfig
    base_model_prefix = "encoder"
    main_input_name = "x"

    def __init__(self, config: GraphAttentionConfig):
        super().__init__(config)
        width = config.num_attention_heads * config.head_size
        self.conv1 = GATConv(
            config.num_features, config.head_size, heads=config.num_attention_heads, dropout=config.dropout
        )
        self.norm = nn.BatchNorm1d(width, momentum=0.99)  # as GiGaMAE has it: the statistics are those of the last step
        self.conv2 = GATConv(width, config.hidden_size, heads=1, concat=False, dropout=config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, GATConv):
            for parameter in (module.att_src, module.att_dst):
                _init_glorot(parameter)
            init.zeros_(module.bias)
        elif isinstance(module, GeometricLinear):
            _init_glorot(module.weight)
        else:
            super()._init_weights(module)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """Map features `(N, num_features)` of nodes to `(N, d)` along edges `(2, E)`."""
        hidden_states = F.elu(self.norm(self.conv1(self.dropout(x), edge_index)))
        return F.elu(self.conv2(self.dropout(hidden_states), edge_index))


def _init_glorot(parameter: torch.Tensor) -> None:
    """Draw weights as PyTorch Geometric does, by the last two dimensions alone."""
    bound = (6 / sum(parameter.shape[-2:])) ** 0.5
    init.uniform_(parameter, -bound, bound)


class CrateGraphEncoder(PreTrainedModel):
    r"""CRATE's layers on a graph: nodes are tokens, and each attends to its neighbours and itself.

        z^0 = W x + b,   z_half = z + MSSA(LN(z) | neighbours),   z' = ISTA(LN(z_half))

    The layers are those of [`CrateModel`], whose MSSA takes a mask; nodes have no order, so there are no positions.
    What it gives is as the last layer leaves it, sparse and not negative. Memory grows with N², the size of the mask:
    good for graphs of some thousand nodes.

    In MSSA a token's score for itself is |U_k n|² / sqrt(p) = sqrt(p) at the usual start, p = d / K the width of a
    head. Among all patches of an image that is little; among few neighbours a node would hear itself alone. So U starts
    smaller by p^(1/4), where that score is 1, and O larger by as much, times `mssa_init_scale`.

    Args:
        config: Sizes, eta, lambda and dropout.
    """

    config_class = CrateGraphConfig
    config: CrateGraphConfig
    base_model_prefix = "encoder"
    main_input_name = "x"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: CrateGraphConfig):
        super().__init__(config)
        self.embedding = nn.Linear(config.num_features, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # It has all that a layer reads; the rest of a CrateEncoderConfig is about images.
        self.layers = nn.ModuleList(CrateLayer(cast(Any, config)) for _ in range(config.num_hidden_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            gain, scale = (self.config.hidden_size / self.config.num_attention_heads) ** -0.25, 1.0
            if hasattr(module, "is_mssa_output"):
                scale = self.config.mssa_init_scale / gain
            elif module.bias is None:  # U of MSSA
                scale = gain
            init.xavier_uniform_(module.weight, scale)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, CrateISTA):
            init.kaiming_uniform_(module.dictionary)
        else:
            super()._init_weights(module)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """Map features `(N, num_features)` of nodes to `(N, d)` along edges `(2, E)`."""
        attends = torch.eye(len(x), dtype=torch.bool, device=x.device)
        attends[edge_index[1], edge_index[0]] = True
        hidden_states = self.dropout(self.embedding(x)).unsqueeze(0)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=attends[None, None])
        return hidden_states.squeeze(0)
