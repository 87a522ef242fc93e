"""CRATE-MAE, formula by formula: a port without any thought of speed, to read and to measure against.

Parameters have the names of `crate_mae_hf.CrateMaeForPreTraining`, so that weights load from one into the other.
Formulas: "Masked Completion via Structured Diffusion with White-Box Transformers", Pai et al., ICLR 2024, and its code,
github.com/Ma-Lab-Berkeley/CRATE.
"""

from types import SimpleNamespace

import torch
from torch import nn

from crate_mae_hf import CrateMaeConfig
from crate_mae_hf.configuration_crate import to_pair
from crate_mae_hf.crate_ops import naive_ista_step
from crate_mae_hf.crate_patches import sincos_position_table


class LiteralMSSA(nn.Module):
    """Multi-head subspace self-attention: softmax(W Wᵀ / sqrt(p)) W per head, W = Z Uᵀ, then the output projection."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.subspace_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width) if num_heads > 1 else nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        codes = self.subspace_proj(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, K, N, p)
        similarity = torch.matmul(codes, codes.transpose(2, 3)) * codes.shape[3] ** -0.5
        heads = torch.matmul(similarity.softmax(dim=-1), codes)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class LiteralISTA(nn.Module):
    """The ISTA step as the papers have it, whatever the number of tokens."""

    def __init__(self, width: int, step_size: float, sparsity_weight: float):
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(width, width))
        self.step_size = step_size
        self.threshold = step_size * sparsity_weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return naive_ista_step(tokens, self.dictionary, self.step_size, self.threshold)


class LiteralEncoderLayer(nn.Module):
    """z_half = z + MSSA(LN(z)),   z' = ISTA(LN(z_half))."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mssa = LiteralMSSA(config.hidden_size, config.num_attention_heads)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ista = LiteralISTA(config.hidden_size, config.ista_step_size, config.ista_lambda)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.mssa(self.layernorm_before(tokens))
        return self.ista(self.layernorm_after(tokens))


class LiteralDecoderLayer(nn.Module):
    """y_half = LN(y) Dᵀ,   y' = y_half - MSSA(LN(y_half))."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dictionary = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mssa = LiteralMSSA(config.hidden_size, config.decoder_num_attention_heads or config.num_attention_heads)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.layernorm_before(tokens) @ self.dictionary.T
        return tokens - self.mssa(self.layernorm_after(tokens))


class LiteralEmbeddings(nn.Module):
    """Patches to tokens; masking by shuffling, as the official code does it."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        patch_size = to_pair(config.patch_size)
        self.mask_ratio = config.mask_ratio
        self.patch_embeddings = nn.ModuleDict(
            {"projection": nn.Conv2d(config.num_channels, config.hidden_size, patch_size, patch_size)}
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings: torch.Tensor
        self.register_buffer("position_embeddings", sincos_position_table(config.hidden_size, config.grid_size))

    def forward(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens = self.patch_embeddings["projection"](pixel_values).flatten(2).transpose(1, 2)
        batch_size, num_patches, width = tokens.shape
        mask = None
        if noise is not None:
            num_kept = int(num_patches * (1 - self.mask_ratio))
            ids_shuffle = noise.argsort(dim=1)
            ids_restore = ids_shuffle.argsort(dim=1)
            kept = tokens.gather(1, ids_shuffle[:, :num_kept, None].expand(-1, -1, width))
            mask_tokens = self.mask_token.expand(batch_size, num_patches - num_kept, width)
            tokens = torch.cat([kept, mask_tokens.to(kept.dtype)], dim=1)
            tokens = tokens.gather(1, ids_restore[:, :, None].expand(-1, -1, width))
            mask = (ids_restore >= num_kept).float()
        tokens = torch.cat([self.cls_token.expand(batch_size, 1, width).to(tokens.dtype), tokens], dim=1)
        return tokens + self.position_embeddings, mask


class LiteralEncoder(nn.Module):
    """Embeddings, layers and final layer norm. Without noise nothing is masked."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.embeddings = LiteralEmbeddings(config)
        self.layers = nn.ModuleList([LiteralEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)

    def forward(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens, mask = self.embeddings(pixel_values, noise)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.layernorm(tokens), mask


class LiteralDecoder(nn.Module):
    """Layers, final layer norm, and the pixels of every patch."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        patch_height, patch_width = to_pair(config.patch_size)
        num_layers = config.decoder_num_hidden_layers or config.num_hidden_layers
        self.layers = nn.ModuleList([LiteralDecoderLayer(config) for _ in range(num_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.final_layer_norm_eps)
        self.prediction_head = nn.Linear(config.hidden_size, patch_height * patch_width * config.num_channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.prediction_head(self.layernorm(tokens))[:, 1:]


class LiteralCrateMae(nn.Module):
    """The masked autoencoder with the mean squared error over masked patches."""

    def __init__(self, config: CrateMaeConfig):
        super().__init__()
        self.config = config
        self.crate_mae = LiteralEncoder(config)
        self.decoder = LiteralDecoder(config)

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> SimpleNamespace:
        """Return `loss`, `logits` `(B, L, pixels of a patch)` and `mask` `(B, L)`; the smallest noise stays visible."""
        tokens, mask = self.crate_mae(pixel_values, noise)
        logits = self.decoder(tokens)
        height, width = to_pair(self.config.patch_size)
        target = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        target = target.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if self.config.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        error = (logits - target).square().mean(-1)
        return SimpleNamespace(loss=(error * mask).sum() / mask.sum(), logits=logits, mask=mask)
