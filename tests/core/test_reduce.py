"""core.reduce against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from infotorch.core.reduce import (
    AGGREGATION_MODES,
    Aggregation,
    aggregate,
    masked_count,
    masked_mean,
    masked_quantile,
    masked_sum,
    masked_var,
    segment_count,
    segment_ids,
    segment_mean,
    segment_spread,
    segment_sum,
    zero_outside,
)

NAN, INF = math.nan, math.inf


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Rows of 5, 2, 0 and 1 tokens; NaN and infinity where the mask is off."""
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 5, [0, 1, 1, 0, 0], [0] * 5, [0, 0, 0, 0, 1]]).bool()
    return x.masked_fill(~mask, NAN).index_fill(0, torch.tensor([2]), INF), mask


def loop(x: Tensor, mask: Tensor, mode: str, length: float) -> float:
    rows = [[float(v) for v, m in zip(row, keep, strict=True) if m] for row, keep in zip(x, mask, strict=True)]
    if mode == "token-mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if mode == "token-sum":
        return sum(map(sum, rows))
    over, _, per_row = mode.partition("-mean-")
    value = {
        "token-sum": sum,
        "token-mean": lambda row: sum(row) / len(row) if row else 0.0,
        "token-sum-norm": lambda row: sum(row) / length,
    }[per_row]
    return sum(map(value, rows)) / (len(rows) if over == "batch" else sum(map(bool, rows)))


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_aggregate_equals_the_loop(batch, mode):
    x, mask = batch
    assert aggregate(x, mask, mode).item() == pytest.approx(loop(x, mask, mode, 5))
    assert aggregate(x, mask, mode, world_size=3).item() == pytest.approx(3 * loop(x, mask, mode, 5))
    assert aggregate(x, mask, mode, length=7).item() == pytest.approx(loop(x, mask, mode, 7))
    assert aggregate(x, mask, mode, length=7).ndim == 0


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_aggregate_gradient(batch, mode):
    x, mask = batch
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(aggregate(leaf, mask, mode), leaf)
    assert (grad[~mask] == 0).all()
    clean = x.masked_fill(~mask, 0.0)
    step = torch.zeros_like(x)
    for i, j in [(0, 0), (1, 2), (3, 4)]:
        step.zero_()[i, j] = 1.0
        assert grad[i, j].item() == pytest.approx(loop(clean + step, mask, mode, 5) - loop(clean, mask, mode, 5))


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_aggregate_of_an_empty_mask(mode):
    x = torch.full((2, 3), NAN, requires_grad=True)
    loss = aggregate(x, torch.zeros(2, 3, dtype=torch.bool), mode)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_global_counts_make_micro_batches_and_ranks_exact(batch, mode):
    x, mask = batch
    whole = aggregate(x, mask, mode, length=6)
    counts = {
        "num_tokens": mask.sum(),
        "num_sequences": mask.any(1).sum() if mode.startswith("seq") else len(x),
        "length": 6,
    }
    micro = sum(aggregate(x[i : i + 1], mask[i : i + 1], mode, **counts) for i in range(4))
    assert micro.item() == pytest.approx(whole.item())
    # Two ranks under data parallelism, whose gradients are averaged
    ranks = [aggregate(x[i : i + 2], mask[i : i + 2], mode, world_size=2, **counts) for i in (0, 2)]
    assert (sum(ranks) / 2).item() == pytest.approx(whole.item())


def test_row_eps_and_legacy_norm(batch):
    x, mask = batch
    rows = [x[0].sum(), x[1, 1:3].sum(), x[3, 4]]
    expected = (rows[0] / 5.5 + rows[1] / 2.5 + rows[2] / 1.5) / 3
    assert aggregate(x, mask, "seq-mean-token-mean", row_eps=0.5).item() == pytest.approx(expected.item())
    legacy = aggregate(x, mask, "seq-mean-token-sum-norm", length=8, legacy_norm=True)
    assert legacy.item() == pytest.approx(sum(rows).item() / 8)


def test_aggregate_errors():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mode: .*did you mean 'token-mean'"):
        aggregate(x, mask, "token-means")
    with pytest.raises(TypeError, match=r"mask: expected a boolean tensor, got torch.float32"):
        aggregate(x, mask.float())
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 3\), got \(3, 2\)"):
        aggregate(x, mask.T)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T\), got \(3,\)"):
        aggregate(x[0], mask[0])
    with pytest.raises(ValueError, match=r"length: expected a number in \(0, inf\], got 0"):
        aggregate(x, mask, "batch-mean-token-sum-norm", length=0)


def test_aggregation_record(batch):
    x, mask = batch
    record = Aggregation.of({"mode": "batch-mean-token-sum-norm", "length": 9})
    assert Aggregation.of(record) is record
    assert record(x, mask, num_sequences=8).item() == pytest.approx(loop(x, mask, "batch-mean-token-sum-norm", 9) / 2)
    assert Aggregation.of("token-sum")(x, mask, world_size=2).item() == pytest.approx(2 * loop(x, mask, "token-sum", 1))
    with pytest.raises(ValueError, match="aggregation: expected one of"):
        Aggregation("mean")


@pytest.mark.parametrize("dim", [None, 0, 1, -1, (0, 1)])
@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_masked_moments_equal_loops(batch, dim, correction):
    x, mask = batch
    if dim in (None, (0, 1)):
        columns = [(x.flatten(), mask.flatten())]
    else:
        columns = list(zip(x.unbind(1 - dim % 2), mask.unbind(1 - dim % 2), strict=True))
    kept = [values[keep].tolist() for values, keep in columns]
    means = [sum(v) / len(v) if v else 0.0 for v in kept]
    variances = [
        sum((a - m) ** 2 for a in v) / (len(v) - correction) if len(v) > correction else 0.0
        for v, m in zip(kept, means, strict=True)
    ]
    for name, got, want in [
        ("sum", masked_sum(x, mask, dim), [sum(v) for v in kept]),
        ("count", masked_count(x, mask, dim), [len(v) for v in kept]),
        ("mean", masked_mean(x, mask, dim), means),
        ("var", masked_var(x, mask, dim, correction=correction), variances),
    ]:
        assert got.dtype == x.dtype
        assert got.reshape(-1).tolist() == pytest.approx(want), name


def test_gradients_outside_the_mask_are_zero(batch):
    x, mask = batch
    for function in (masked_sum, masked_mean, masked_var, zero_outside):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf, mask).sum(), leaf)
        assert (grad[~mask] == 0).all(), function
        assert grad[mask].isfinite().all()
        assert grad[mask].abs().sum() > 0


def test_masked_var_gradient():
    x = torch.tensor([[1.0, 5.0, 2.0, NAN]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    masked_var(x, mask, 1).sum().backward()
    # d var / dx_i = 2 (x_i - mean) / (n - 1)
    assert x.grad[0].tolist() == pytest.approx([1 - 8 / 3, 5 - 8 / 3, 2 - 8 / 3, 0.0])


def test_a_mask_broadcasts():
    x = torch.arange(6.0).reshape(2, 3)
    assert masked_mean(x, torch.tensor([True, False, True])).item() == 2.5
    assert masked_var(x, torch.tensor([[True], [False]]), 0).tolist() == [0.0, 0.0, 0.0]
    assert masked_var(x, torch.tensor([[True], [False]])).item() == 1.0


def test_masks_must_be_boolean():
    for function in (masked_sum, masked_mean, masked_var):
        with pytest.raises(TypeError, match=r"mask: expected a boolean tensor, got torch.int64"):
            function(torch.zeros(2), torch.ones(2, dtype=torch.long))


@pytest.fixture
def turns() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, trajectory, turn and mask: turns that skip numbers, come back, are masked out, span two rows."""
    x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    trajectory = torch.tensor([[9], [-2], [9], [4]])
    turn = torch.tensor([[0, 0, 3, 3, 3, 0, 7], [5, 5, 5, 5, 5, 5, 5], [8, 8, 7, 7, 7, 9, 9], [1, 2, 2, 1, 1, 6, 6]])
    mask = torch.rand(4, 7, generator=torch.Generator().manual_seed(4)) < 0.7
    mask[3, 5:] = False
    return x.masked_fill(~mask, NAN), trajectory, turn, mask


def by_key(x: Tensor, trajectory: Tensor, turn: Tensor, mask: Tensor) -> dict[tuple[int, int], list[float]]:
    found: dict[tuple[int, int], list[float]] = {}
    for i, j in mask.nonzero().tolist():
        found.setdefault((int(trajectory[i, 0]), int(turn[i, j])), []).append(float(x[i, j]))
    return found


def test_segments_equal_the_loop(turns):
    x, trajectory, turn, mask = turns
    segment = segment_ids(trajectory, turn, mask=mask)
    groups = by_key(*turns)
    assert (segment[~mask] == -1).all()
    for i, j in mask.nonzero().tolist():
        assert sorted(groups)[segment[i, j]] == (trajectory[i, 0], turn[i, j])
    rest = [0.0] * (mask.numel() - len(groups))
    wanted = [groups[key] for key in sorted(groups)]
    assert segment_sum(x, segment).tolist() == pytest.approx([sum(v) for v in wanted] + rest)
    assert segment_count(segment).tolist() == [len(v) for v in wanted] + rest
    assert segment_mean(x, segment).tolist() == pytest.approx([sum(v) / len(v) for v in wanted] + rest)
    assert len(segment_mean(x, segment, len(groups))) == len(groups)
    spread = segment_spread(segment_mean(x, segment), segment)
    for i, j in mask.nonzero().tolist():
        values = groups[int(trajectory[i, 0]), int(turn[i, j])]
        assert spread[i, j].item() == pytest.approx(sum(values) / len(values))
    assert not spread[~mask].any()


def test_segment_gradient(turns):
    x, trajectory, turn, mask = turns
    segment = segment_ids(trajectory, turn, mask=mask)
    leaf = x.clone().requires_grad_()
    weight = torch.randn(mask.numel(), dtype=torch.float64)
    (grad,) = torch.autograd.grad((weight * segment_mean(leaf, segment)).sum(), leaf)
    expected = weight[segment.clamp(min=0)] / segment_count(segment)[segment.clamp(min=0)]
    torch.testing.assert_close(grad, torch.where(mask, expected, 0.0))
    clean = x.masked_fill(~mask, 0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_spread(segment_mean(x, segment), segment), clean)


def test_segments_in_half_precision_are_summed_in_float32():
    segment = torch.zeros(4096, dtype=torch.long)
    x = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    assert segment_sum(x, segment, 1).item() == 4096
    assert segment_mean(x, segment, 1).dtype == torch.float32


def test_segments_compile(turns):
    x, trajectory, turn, mask = turns

    def function(x: Tensor) -> Tensor:
        segment = segment_ids(trajectory, turn, mask=mask)
        return segment_spread(segment_mean(x, segment), segment)

    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x))


def test_segments_of_nothing():
    segment = segment_ids(torch.zeros(2, 3, dtype=torch.long), mask=torch.zeros(2, 3, dtype=torch.bool))
    assert (segment == -1).all()
    assert segment_mean(torch.full((2, 3), NAN), segment).tolist() == [0.0] * 6


def test_segment_errors():
    with pytest.raises(ValueError, match="keys: expected at least one tensor"):
        segment_ids()
    with pytest.raises(TypeError, match=r"keys: expected integers, got torch.float32"):
        segment_ids(torch.zeros(2))
    with pytest.raises(TypeError, match="mask: expected a boolean tensor"):
        segment_ids(torch.zeros(2, dtype=torch.long), mask=torch.ones(2))
    with pytest.raises(ValueError, match=r"segment: expected shape \(2, 3\), as x has, got \(2,\)"):
        segment_mean(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("q", [0.0, 0.13, 0.5, 1.0])
def test_masked_quantile_against_torch(batch, q):
    x, mask = batch
    hidden = x.masked_fill(~mask, NAN)
    torch.testing.assert_close(masked_quantile(x, mask, q), torch.quantile(x[mask], q))
    for dim in (0, 1):
        torch.testing.assert_close(
            masked_quantile(x, mask, q, dim), torch.nanquantile(hidden, q, dim=dim), equal_nan=True
        )
    one = torch.zeros_like(mask)
    one[0, 2] = True
    assert masked_quantile(x, one, q) == x[0, 2]


@pytest.mark.parametrize("q", [0.6, 0.7, 0.8, 0.9])
def test_masked_quantile_that_should_be_an_entry_is_torchs_to_the_last_bit(q):
    x = torch.rand(201, generator=torch.Generator().manual_seed(0))
    for n in (11, 21, 31, 101, 201):
        every = torch.ones(n, dtype=torch.bool)
        assert masked_quantile(x[:n], every, q) == torch.quantile(x[:n], q)


def test_masked_quantile_among_infinities():
    x, every = torch.tensor([INF, 1.0, 2.0, -INF]), torch.ones(4, dtype=torch.bool)
    assert [masked_quantile(x, every, q).item() for q in (0.0, 0.5, 1.0)] == [-INF, 1.5, INF]
    assert masked_quantile(torch.full((4,), INF), every, 0.3).item() == INF


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_masked_quantile_takes_the_nearest_entry(batch, q):
    x, mask = batch
    assert masked_quantile(x, mask, q, interpolation="nearest") == torch.quantile(x[mask], q, interpolation="nearest")
    values = torch.arange(4.0)  # ranks 0.5 and 1.5 round half to even
    assert masked_quantile(values, values < 2, 0.5, interpolation="nearest") == 0.0
    assert masked_quantile(values, values < 4, 0.5, interpolation="nearest") == 2.0

    def function(x):
        return masked_quantile(x, mask, q, interpolation="nearest")

    assert torch.compile(function, fullgraph=True, backend="aot_eager")(x) == function(x)


def test_masked_quantile_of_nothing_and_of_nonsense(batch):
    x, mask = batch
    assert masked_quantile(x, torch.zeros_like(mask), 0.5).isnan()
    assert masked_quantile(x.bfloat16(), mask, 0.5).dtype == torch.float32
    with pytest.raises(ValueError, match=r"q: expected a number in \[0, 1\], got 2"):
        masked_quantile(x, mask, 2)
