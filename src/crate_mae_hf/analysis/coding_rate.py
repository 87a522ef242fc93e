"""Coding rates and sparsity: the two sides of the sparse rate reduction objective that CRATE's layers optimise.

Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023. Tokens are rows.
"""

import torch


def coding_rate(tokens: torch.Tensor, eps_squared: float = 0.01, normalize: bool = False) -> torch.Tensor:
    r"""Coding rate: nats to describe all tokens jointly, up to a squared error of eps² per token.

        R(Z) = 1/2 logdet(I + d / (N eps²) Zᵀ Z)

    Computed in float64 from the smaller Gram matrix (Zᵀ Z or Z Zᵀ, which give the same determinant). Zero for no tokens
    and for tokens that are all zero.

    Args:
        tokens: Z of shape `(..., N, d)`, on any device.
        eps_squared: eps². The official figures are made with `eps=0.01` put where eps² belongs; the default is the same
            number by its right name.
        normalize: Whether each token is first scaled to norm 1 (a zero token stays zero). Then R is at most
            d/2 log(1 + 1/eps²).

    Returns:
        Rates of shape `(...)`, float64.

    Raises:
        ValueError: If `eps_squared` is not positive, or the tokens hold infinite values or no numbers.
    """
    if not eps_squared > 0:
        raise ValueError(f"`eps_squared` must be positive, got {eps_squared}.")
    if tokens.ndim < 2 or not tokens.isfinite().all():
        raise ValueError(f"`tokens` must be finite numbers of shape (..., N, d), got shape {tuple(tokens.shape)}.")
    if tokens.device.type == "mps":  # has no float64
        tokens = tokens.cpu()
    tokens = tokens.double()
    if normalize:
        norm = tokens.norm(dim=-1, keepdim=True)
        tokens = tokens / norm.where(norm > 0, 1)
    num_tokens, width = tokens.shape[-2:]
    if num_tokens > width:
        tokens = tokens.transpose(-1, -2)
    gram = tokens @ tokens.transpose(-1, -2) * (width / (max(num_tokens, 1) * eps_squared))
    gram.diagonal(dim1=-2, dim2=-1).add_(1)
    # 1/2 logdet of a positive definite matrix: the logarithms on the diagonal of its Cholesky factor.
    return torch.linalg.cholesky(gram).diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def subspace_coding_rate(codes: torch.Tensor, eps_squared: float = 0.01, normalize: bool = False) -> torch.Tensor:
    r"""Coding rate against K subspaces: what MSSA compresses.

        R^c(Z | U) = 1/2 sum_k logdet(I + p / (N eps²) (Z U_kᵀ)ᵀ (Z U_kᵀ)),   p = d / K

    Args:
        codes: Z Uᵀ head by head, `(..., K, N, p)`.
        eps_squared: As for `coding_rate`.
        normalize: Whether each token is first scaled to norm 1 within each head, as the official figures have it. Then
            R^c is at most K p/2 log(1 + 1/eps²).

    Returns:
        Rates of shape `(...)`, float64.

    Raises:
        ValueError: As for `coding_rate`.
    """
    if codes.ndim < 3:
        raise ValueError(f"`codes` must have shape (..., K, N, p), got {tuple(codes.shape)}.")
    return coding_rate(codes, eps_squared, normalize).sum(dim=-1)


def sparsity(tokens: torch.Tensor) -> torch.Tensor:
    """Share of exact zeros, `(..., N, d)` to `(...)`, float64; the papers plot `nonzero_share`, its complement."""
    return (tokens == 0).double().mean(dim=(-2, -1))


def nonzero_share(tokens: torch.Tensor) -> torch.Tensor:
    """Share of entries that are not zero, |Z|_0 / (N d), `(..., N, d)` to `(...)`: what the papers plot as sparsity."""
    return 1 - sparsity(tokens)


def subspace_coherence(projection: torch.Tensor, num_heads: int) -> torch.Tensor:
    r"""How much the K subspaces overlap: the mean squared cosine of the angles between them.

        mean over k != l of |Q_kᵀ Q_l|_F² / p,   Q_k an orthonormal basis of the rows of U_k

    0 for orthogonal subspaces, 1 for equal ones, p / d on average for random ones; NaN for one head. MSSA is derived
    for orthogonal ones.

    Args:
        projection: U of shape `(d, d)`, as in `subspace_proj.weight`; head k owns rows k p to (k + 1) p.
        num_heads: Number K of subspaces.
    """
    bases = torch.linalg.qr(projection.detach().cpu().double().unflatten(0, (num_heads, -1)).transpose(1, 2)).Q
    cosines = torch.einsum("kdp,ldq->klpq", bases, bases).square().sum(dim=(2, 3)) / bases.shape[2]
    return cosines[~torch.eye(num_heads, dtype=torch.bool)].mean()


def orthogonality_defect(dictionary: torch.Tensor) -> torch.Tensor:
    """|Dᵀ D - I|_F / sqrt(d): 0 for an orthogonal dictionary, as the derivation of ISTA's inverse assumes.

    Of a dictionary with more atoms than dimensions it is |D Dᵀ - I|_F / sqrt(d), 0 where D Dᵀ x = x for every token x.
    """
    dictionary = dictionary.detach().cpu().double()
    if dictionary.shape[1] > dictionary.shape[0]:
        dictionary = dictionary.T
    identity = torch.eye(dictionary.shape[1], dtype=torch.float64)
    return (dictionary.T @ dictionary - identity).norm() / identity.shape[0] ** 0.5
