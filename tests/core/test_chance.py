"""core.chance against scikit-learn, enumeration, and its claims."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.metrics.cluster import expected_mutual_information as sklearn_expected
from torch import Tensor

from infotorch.core import chance as C
from infotorch.core.discrete import discrete_entropy, discrete_mutual_information


def integers(n: int, high: int, seed: int) -> Tensor:
    return torch.randint(high, (n,), generator=torch.Generator().manual_seed(seed))


def table(x: Tensor, y: Tensor) -> np.ndarray:
    return metrics.cluster.contingency_matrix(x, y)


def test_expectation_by_enumeration():
    x, y = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
    every = [discrete_mutual_information(x, y[list(order)]) for order in itertools.permutations(range(5))]
    found = C.expected_mutual_information(torch.bincount(x), torch.bincount(y))
    torch.testing.assert_close(found, torch.stack(every).mean())


@pytest.mark.parametrize(("n", "kx", "ky"), [(4, 2, 2), (50, 3, 20), (300, 100, 100), (20_000, 2, 5), (20_000, 400, 3)])
def test_agrees_with_scikit_learn(n: int, kx: int, ky: int):
    x = integers(n, kx, 0)
    y = torch.where(integers(n, 2, 1) == 1, x % ky, integers(n, ky, 2))
    cells = table(x, y)
    want = sklearn_expected(cells, n)
    torch.testing.assert_close(
        float(C.expected_mutual_information(*(torch.from_numpy(cells.sum(i)) for i in (1, 0)))),
        want,
        rtol=1e-7,
        atol=1e-12,
    )
    score = metrics.adjusted_mutual_info_score(x, y, average_method="min")
    torch.testing.assert_close(float(C.adjusted_mutual_information(x, y, normalized=True)), score, rtol=1e-6, atol=1e-9)
    most = torch.minimum(discrete_entropy(x), discrete_entropy(y))
    torch.testing.assert_close(C.adjusted_mutual_information(x, y), score * most, rtol=1e-6, atol=1e-9)


def test_large_counts_do_not_cost_their_size(monkeypatch: pytest.MonkeyPatch):
    rows, columns = torch.tensor([10**6, 3 * 10**6]), torch.tensor([2 * 10**6, 10**6, 10**6])
    whole = C.expected_mutual_information(rows, columns)
    assert float(whole) == pytest.approx(2 / (2 * 4 * 10**6), rel=1e-4)  # (Kx - 1)(Ky - 1) / 2N
    monkeypatch.setattr(C, "_CHUNK", 100)
    torch.testing.assert_close(C.expected_mutual_information(rows, columns), whole)


def test_sparse_tables_of_independent_columns_show_nothing():
    found = [
        float(C.adjusted_mutual_information(integers(300, 100, 2 * s), integers(300, 100, 2 * s + 1)))
        for s in range(20)
    ]
    plugin = float(discrete_mutual_information(integers(300, 100, 0), integers(300, 100, 1)))
    assert plugin > 1.5
    assert abs(np.mean(found)) < 0.1


def test_columns_that_cannot_exceed_chance():
    x = torch.arange(10)
    assert C.adjusted_mutual_information(x, integers(10, 2, 0)) == 0
    assert C.adjusted_mutual_information(torch.zeros(10, dtype=torch.long), x) == 0


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (torch.tensor([1, 2]), torch.tensor([1]), "expected equal sums, got 3 and 1"),
        (torch.tensor([0, 0]), torch.tensor([0]), "rows: expected whole numbers"),
        (torch.tensor([1.5]), torch.tensor([1.5]), "rows: expected whole numbers"),
        (torch.tensor([3]), torch.tensor([4, -1]), "columns: expected whole numbers"),
        (torch.ones(2, 2), torch.ones(2), "rows: expected shape"),
    ],
)
def test_bad_margins_are_refused(rows: Tensor, columns: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        C.expected_mutual_information(rows, columns)
