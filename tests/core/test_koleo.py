"""core.koleo against dense distances."""

from __future__ import annotations

import pytest
import torch

from infotorch.core.koleo import koleo, neighbor_distances


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("metric", "p"), [("euclidean", 2.0), ("max", float("inf"))])
def test_distances_and_gradients_against_cdist(metric, p):
    x, q = normal(40, 3).requires_grad_(), normal(7, 3, seed=1).requires_grad_()
    dense = torch.cdist(x, x, p=p) + torch.diag(torch.full((40,), torch.inf, dtype=torch.float64))
    for found, expected in (
        (neighbor_distances(x, 4, metric=metric)[0], dense.topk(4, largest=False).values),
        (neighbor_distances(x, 4, queries=q, metric=metric)[0], torch.cdist(q, x, p=p).topk(4, largest=False).values),
    ):
        torch.testing.assert_close(found, expected)
        weights = normal(*found.shape, seed=2)
        ours, theirs = (torch.autograd.grad((weights * d).sum(), x, retain_graph=True)[0] for d in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_koleo_against_the_formula():
    x = normal(30, 5).requires_grad_()
    unit = x / x.norm(dim=1, keepdim=True)
    dense = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist") + 9 * torch.eye(30)
    expected = -(dense.min(1).values + 1e-8).log().mean()
    found = koleo(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(expected, x)[0])
    assert torch.autograd.gradcheck(lambda z: koleo(z, k=2, normalize=False), x)


def test_koleo_spreads_points():
    x = (torch.tensor([1.0, 0.0]) + 0.1 * normal(16, 2).float()).requires_grad_()
    optimizer = torch.optim.SGD([x], lr=0.3)
    before = float(koleo(x).detach())
    for _ in range(200):
        optimizer.zero_grad()
        koleo(x).backward()
        optimizer.step()
    assert float(koleo(x).detach()) < before - 1.5


def test_duplicates_have_no_gradient_and_finite_loss():
    x = torch.ones(4, 3, requires_grad=True)
    loss = koleo(x)
    loss.backward()
    assert bool(loss.isfinite())
    assert not x.grad.any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: koleo(torch.ones(3, 2), k=3), ValueError, "k: expected"),
        (lambda: koleo(torch.ones(3)), ValueError, r"x: expected shape \(n, d\)"),
        (lambda: koleo(torch.ones(3, 2).long()), TypeError, "x: expected a floating"),
        (lambda: koleo(torch.full((3, 2), torch.nan)), ValueError, "finite"),
        (lambda: neighbor_distances(normal(5, 2), 6, queries=normal(3, 2)), ValueError, "k: expected"),
        (lambda: neighbor_distances(normal(5, 2), 1, queries=normal(3, 3)), ValueError, "queries: expected"),
        (lambda: neighbor_distances(normal(5, 2), 1, metric="cosine"), ValueError, "metric: expected one of"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
