"""Choosing tokens by rank: ties, infinities, fewer candidates than wanted."""

import pytest
import torch
from torch import Tensor

from infotorch.losses._select import lowest

INF = float("inf")


def by_sorting(scores: Tensor, eligible: Tensor, count: int) -> Tensor:
    places = sorted((float(scores[i]), i) for i in range(len(scores)) if eligible[i])
    chosen = torch.zeros_like(eligible)
    chosen[[i for _, i in places[: max(count, 0)]]] = True
    return chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 3, 17, 40, 99])
def test_lowest_is_the_head_of_a_stable_sort(count: int, dtype: torch.dtype) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lowest, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(count)
    for values in (torch.randn(40, generator=generator), torch.randint(3, (40,), generator=generator).float()):
        scores = values.to(dtype)
        scores[::7], scores[1::11] = INF, -INF
        for eligible in (torch.rand(40, generator=generator) > 0.4, torch.zeros(40, dtype=torch.bool)):
            expected = by_sorting(scores, eligible, count)
            for wanted in (torch.tensor(count), torch.tensor(float(count))):
                assert torch.equal(lowest(scores, eligible, wanted), expected)
                assert torch.equal(compiled(scores, eligible, wanted), expected)


def test_entries_that_are_not_eligible_may_hold_anything() -> None:
    scores, eligible = torch.tensor([float("nan"), 2.0, -INF, 1.0]), torch.tensor([False, True, False, True])
    assert torch.equal(lowest(scores, eligible, torch.tensor(1)), torch.tensor([False, False, False, True]))
