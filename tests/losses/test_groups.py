"""Statistics of groups against loops over the groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infotorch.losses._groups import Groups


def draw(seed: int, rows: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged, scattered groups with odd ids, values with ties, and a mark on some rows."""
    g = torch.Generator().manual_seed(seed)
    group = torch.randint(-4, 5, (rows,), generator=g) * 7
    values = torch.randint(0, 4, (rows,), generator=g).double() / 3
    return group, values, torch.rand(rows, generator=g) < 0.4


def by_loop(group: Tensor, statistic) -> Tensor:
    return torch.stack([torch.as_tensor(statistic(group == own)) for own in group])


STATISTICS = {
    "size": (lambda g, x, rows: g.size, lambda x, rows, own: own.sum()),
    "sum": (lambda g, x, rows: g.sum(x), lambda x, rows, own: x[own].sum()),
    "mean": (lambda g, x, rows: g.mean(x), lambda x, rows, own: x[own].mean()),
    "mean_of": (
        lambda g, x, rows: g.mean_of(x, rows),
        lambda x, rows, own: x[own & rows].mean() if (own & rows).any() else torch.tensor(0.0).double(),
    ),
    "std": (
        lambda g, x, rows: g.std(x),
        lambda x, rows, own: x[own].std() if own.sum() > 1 else torch.tensor(0.0).double(),
    ),
    "max": (lambda g, x, rows: g.max(x), lambda x, rows, own: x[own].max()),
    "min": (lambda g, x, rows: g.min(x), lambda x, rows, own: x[own].min()),
    "uniform": (lambda g, x, rows: g.uniform(x), lambda x, rows, own: len(set(x[own].tolist())) == 1),
    "any": (lambda g, x, rows: g.any(rows), lambda x, rows, own: rows[own].any()),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("seed", range(5))
def test_statistics_equal_loops(name: str, seed: int) -> None:
    group, x, rows = draw(seed)
    fast, slow = STATISTICS[name]
    expected = by_loop(group, lambda own: slow(x, rows, own))
    torch.testing.assert_close(fast(Groups(group), x, rows), expected)


@pytest.mark.parametrize("seed", range(5))
def test_rank_sorts_within_the_group_and_keeps_row_order_in_ties(seed: int) -> None:
    group, x, _ = draw(seed)
    ranks = Groups(group).rank(x)
    for own in group.unique():
        rows = (group == own).nonzero().squeeze(1).tolist()
        expected = sorted(rows, key=lambda row: float(x[row]))  # Python's sort is stable
        assert [expected.index(row) for row in rows] == ranks[rows].tolist()
    places = Groups(group).rank()
    assert places.tolist() == [int((group[:row] == group[row]).sum()) for row in range(len(group))]
    assert torch.equal(Groups(group).first(), places == 0)


def test_one_row() -> None:
    groups = Groups(torch.tensor([9]))
    assert groups.std(torch.tensor([3.0])).tolist() == [0.0]
    assert groups.rank(torch.tensor([3.0])).tolist() == [0]


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    groups = Groups(torch.zeros(4096, dtype=torch.long))
    assert groups.sum(x)[0] == 4096
    assert groups.sum(x).dtype == torch.float32


def test_compiles_without_graph_break() -> None:
    group, x, rows = draw(0)

    def all_of(group: Tensor, x: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        g = Groups(group)
        return g.mean(x), g.mean_of(x, rows), g.std(x), g.max(x), g.any(rows), g.rank(x), g.first()

    compiled = torch.compile(all_of, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(group, x, rows), all_of(group, x, rows), strict=True):
        torch.testing.assert_close(found, expected)
