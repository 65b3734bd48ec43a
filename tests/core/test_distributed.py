"""core.distributed in one process and in two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from infotorch.core import distributed


def collect() -> dict[str, Any]:
    rank = distributed.rank()
    x = torch.arange(2.0) + 10 * rank
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    total = distributed.all_reduce_sum_with_grad(leaf * (rank + 1))
    # Each rank weighs the common total differently, so that the two upstream gradients differ.
    (total * torch.tensor([1.0, 3.0 + rank])).sum().backward()
    gathered = torch.tensor([1.0, 2.0, 3.0][: rank + 1], requires_grad=True)
    # Rows 0 (of rank 0), 1 and 2 (of rank 1), which each rank weighs differently.
    (distributed.gather_cat_with_grad(gathered) * torch.tensor([1.0, 10.0, 100.0]) * (rank + 1)).sum().backward()
    return {
        "gathered_grad": gathered.grad,
        "active": distributed.is_active(),
        "size": distributed.world_size(),
        "rank": rank,
        "sum": distributed.all_reduce_sum(x),
        "x_after": x,
        "max": distributed.all_reduce_max(-x),
        "no_grad": distributed.all_reduce_sum(leaf).requires_grad,
        "gathered": distributed.gather_cat(torch.full((rank + 1, 2), rank)),
        "empty": distributed.gather_cat(torch.full((3 * rank,), 5.0)),
        "counts": distributed.gather_counts(4 + rank, torch.device("cpu")),
        "total": total.detach(),
        "leaf_grad": leaf.grad,
    }


@pytest.fixture(scope="module")
def ranks(run_distributed: Callable[..., list[Any]]) -> list[dict[str, Any]]:
    return run_distributed(collect, 2)


def test_identity_without_a_group():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not distributed.is_active()
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    for reduce in (distributed.all_reduce_sum, distributed.all_reduce_max):
        out = reduce(x)
        assert torch.equal(out, x.detach())
        assert not out.requires_grad
        assert out.data_ptr() != x.data_ptr()
    assert distributed.all_reduce_sum_with_grad(x) is x
    assert torch.equal(distributed.gather_cat(x), x.detach())
    assert not distributed.gather_cat(x).requires_grad
    assert distributed.gather_counts(3, x.device) == [3]


def test_topology(ranks: list[dict[str, Any]]):
    assert [r["active"] for r in ranks] == [True, True]
    assert [r["size"] for r in ranks] == [2, 2]
    assert [r["rank"] for r in ranks] == [0, 1]


def test_reductions(ranks: list[dict[str, Any]]):
    for i, r in enumerate(ranks):
        assert r["sum"].tolist() == [10.0, 12.0]
        assert r["x_after"].tolist() == [10.0 * i, 1 + 10.0 * i]  # the argument is left alone
        assert r["max"].tolist() == [0.0, -1.0]
        assert not r["no_grad"]


def test_gather_of_unequal_lengths(ranks: list[dict[str, Any]]):
    for r in ranks:
        assert r["gathered"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert r["empty"].tolist() == [5.0, 5.0, 5.0]
        assert r["counts"] == [4, 5]


def test_gathered_gradient_is_that_of_the_sum_of_losses(ranks: list[dict[str, Any]]):
    assert ranks[0]["gathered_grad"].tolist() == [3.0]
    assert ranks[1]["gathered_grad"].tolist() == [30.0, 300.0]


def test_gradient_is_that_of_the_sum_of_losses(ranks: list[dict[str, Any]]):
    for i, r in enumerate(ranks):
        assert r["total"].tolist() == [3.0, 6.0]
        assert r["leaf_grad"].tolist() == [2.0 * (i + 1), 7.0 * (i + 1)]
