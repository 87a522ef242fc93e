"""Every formula against a plain loop in float64 and against values worked out by hand."""

import math

import pytest
import torch

from crate_mae_hf.analysis import (
    coding_rate,
    nonzero_share,
    orthogonality_defect,
    sparsity,
    subspace_coding_rate,
    subspace_coherence,
)


def rate_by_loop(tokens: list[list[float]], eps_squared: float) -> float:
    """1/2 log det(I + d / (N eps²) Zᵀ Z), the determinant by Gaussian elimination."""
    num_tokens, width = len(tokens), len(tokens[0])
    matrix = [
        [float(i == j) + width / (num_tokens * eps_squared) * sum(z[i] * z[j] for z in tokens) for j in range(width)]
        for i in range(width)
    ]
    rate = 0.0
    for i in range(width):
        rate += math.log(matrix[i][i]) / 2
        for j in range(i + 1, width):
            factor = matrix[j][i] / matrix[i][i]
            matrix[j] = [a - factor * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    return rate


@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1), (7, 4), (4, 7), (5, 5), (1, 6)])
@pytest.mark.parametrize("eps_squared", [0.01, 0.5])
def test_coding_rate_against_a_loop(num_tokens, width, eps_squared):
    tokens = torch.randn(3, num_tokens, width)
    rates = coding_rate(tokens, eps_squared)
    assert rates.dtype == torch.float64
    expected = [rate_by_loop(image, eps_squared) for image in tokens.double().tolist()]
    torch.testing.assert_close(rates, torch.tensor(expected, dtype=torch.float64))
    units = tokens.double() / tokens.double().norm(dim=2, keepdim=True)
    expected = [rate_by_loop(image, eps_squared) for image in units.tolist()]
    torch.testing.assert_close(
        coding_rate(tokens, eps_squared, normalize=True), torch.tensor(expected, dtype=torch.float64)
    )


def test_coding_rate_by_hand():
    # The N = d tokens e_1 ... e_d: I + 1 / eps² I.
    assert coding_rate(torch.eye(6), 0.25).item() == pytest.approx(6 / 2 * math.log(1 + 4))
    # Rank 1: N copies of a token of norm 3, one eigenvalue 1 + d / eps² 9.
    token = torch.tensor([[1.0, 2.0, 2.0]])
    assert coding_rate(token.expand(5, 3), 0.5).item() == pytest.approx(math.log(1 + 3 / 0.5 * 9) / 2)
    assert coding_rate(token.expand(5, 3), 0.5, normalize=True).item() == pytest.approx(math.log(1 + 3 / 0.5) / 2)
    assert coding_rate(torch.zeros(2, 5, 3)).tolist() == [0, 0]
    assert coding_rate(torch.zeros(2, 5, 3), normalize=True).tolist() == [0, 0]
    assert coding_rate(torch.empty(2, 0, 3)).tolist() == [0, 0]
    assert coding_rate(torch.empty(0, 5, 3)).shape == (0,)


def test_rank_deficient_tokens_of_large_norm():
    """float32 would not do: the eigenvalues are 1 (48 times), 5e9 and 5e10."""
    basis = torch.linalg.qr(torch.randn(100, 2).double()).Q
    tokens = 1e3 * torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().repeat(25, 1) @ basis.T
    expected = sum(math.log(1 + 100 / (50 * 0.01) * 25 * (1e3 * a) ** 2) / 2 for a in (3, 1))
    assert coding_rate(tokens).item() == pytest.approx(expected, rel=1e-6)


def test_both_gram_matrices_agree():
    tokens = torch.randn(6, 6).double()
    padded = torch.cat([tokens, torch.zeros(5, 6).double()])  # zero tokens change N only
    torch.testing.assert_close(coding_rate(padded, 0.01), coding_rate(tokens, 0.01 * 11 / 6))


def test_subspace_coding_rate_against_a_loop():
    codes = torch.randn(2, 3, 7, 4)
    expected = [sum(rate_by_loop(head, 0.01) for head in image) for image in codes.double().tolist()]
    torch.testing.assert_close(subspace_coding_rate(codes), torch.tensor(expected, dtype=torch.float64))


def test_subspace_coding_rate_by_hand():
    """Orthonormal codes reach the bound K p/2 log(1 + 1/eps²) of unit-norm tokens; nothing exceeds it."""
    num_heads, width, eps_squared = 3, 4, 0.01
    bound = num_heads * width / 2 * math.log(1 + 1 / eps_squared)
    orthonormal = torch.eye(width).expand(num_heads, width, width)
    assert subspace_coding_rate(orthonormal, eps_squared).item() == pytest.approx(bound)
    assert subspace_coding_rate(5 * orthonormal, eps_squared, normalize=True).item() == pytest.approx(bound)
    rates = subspace_coding_rate(torch.randn(20, num_heads, 50, width), eps_squared, normalize=True)
    assert (rates < bound).all()
    assert (rates > 0.8 * bound).all()


def test_normalisation_is_head_by_head():
    codes = torch.randn(1, 2, 5, 3)
    scaled = codes * torch.rand(1, 2, 5, 1).add(0.1)
    torch.testing.assert_close(
        subspace_coding_rate(codes, normalize=True), subspace_coding_rate(scaled, normalize=True), rtol=1e-5, atol=0
    )


def test_one_head_is_the_coding_rate():
    tokens = torch.randn(2, 5, 3)
    torch.testing.assert_close(subspace_coding_rate(tokens.unsqueeze(1)), coding_rate(tokens))


def test_sparsity():
    tokens = torch.tensor([[[0.0, 1.0], [0.0, -0.0]], [[2.0, 1e-30], [3.0, 4.0]]])
    assert sparsity(tokens).tolist() == [0.75, 0]
    assert nonzero_share(tokens).tolist() == [0.25, 1]


def test_subspace_coherence():
    assert subspace_coherence(torch.eye(6), 3).item() == pytest.approx(0)
    rows = torch.randn(2, 6)
    mixed = torch.randn(3, 2, 2) @ rows  # three bases of one plane
    assert subspace_coherence(mixed.flatten(0, 1), 3).item() == pytest.approx(1)
    # Two planes of R^4 that share one direction and are orthogonal in the other: cosines 1 and 0.
    planes = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 1.0, 0]])
    assert subspace_coherence(planes, 2).item() == pytest.approx(0.5)
    assert subspace_coherence(torch.eye(4), 1).isnan()
    assert subspace_coherence(torch.randn(64, 64), 8).item() == pytest.approx(8 / 64, rel=0.05)


def test_orthogonality_defect():
    assert orthogonality_defect(torch.linalg.qr(torch.randn(5, 5).double()).Q).item() == pytest.approx(0, abs=1e-12)
    assert orthogonality_defect(2 * torch.eye(4)).item() == pytest.approx(3)
    assert orthogonality_defect(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).item() == pytest.approx(math.sqrt(3 / 2))


def test_errors():
    with pytest.raises(ValueError, match="`eps_squared` must be positive"):
        coding_rate(torch.ones(2, 2), 0)
    with pytest.raises(ValueError, match="`tokens` must be finite"):
        coding_rate(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="`tokens` must be finite numbers of shape"):
        coding_rate(torch.ones(2))
    with pytest.raises(ValueError, match="`codes` must have shape"):
        subspace_coding_rate(torch.ones(2, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    codes = torch.randn(2, 3, 70, 16)
    torch.testing.assert_close(subspace_coding_rate(codes.cuda()).cpu(), subspace_coding_rate(codes))
