"""A range that follows the targets: its statistics, in half precision, compiled, in processes and through a file."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import pytest
import torch
from processes import run_in_processes

from infotorch.nn import C51, HLGauss, RunningRange, TwoHot, mlp


def running(**options) -> RunningRange:
    return RunningRange(HLGauss(-3.0, 3.0, 51, pad_sigma=3), **options)


def see(head: RunningRange, *batches: torch.Tensor) -> RunningRange:
    for y in batches:
        head.loss(torch.zeros(*y.shape, head.bins), y)
    return head


def test_statistics_are_those_of_all_targets():
    y = 1e6 + 5 * torch.randn(1_000, dtype=torch.float64)
    parts = [y[a:b] for a, b in pairwise((0, 1, 8, 700, 1_000))]  # the first a single target
    head = see(running(), *parts)
    torch.testing.assert_close(head.location, y.mean())
    torch.testing.assert_close(head.scale, y.std(correction=0), rtol=1e-9, atol=0.0)
    assert head.v_max == pytest.approx(float(y.mean() + 3 * y.std(correction=0)))
    head.eval()
    before = head.stats.clone()
    see(head, y + 7)
    assert torch.equal(head.stats, before)


def test_decay_forgets():
    head = see(running(decay=0.5), *(torch.tensor([y - 1.0, y + 1.0]) for y in [0.0] * 5 + [100.0] * 20))
    assert head.location == pytest.approx(100, abs=1e-3)
    assert head.scale == pytest.approx(1, abs=1e-2)


def test_before_two_targets_differ_the_scale_is_one():
    head = running()
    assert (head.v_min, head.v_max) == (-3.0, 3.0)
    see(head, torch.tensor([5.0]), torch.tensor([5.0, 5.0]), torch.zeros(0))
    assert (head.v_min, head.v_max) == (2.0, 8.0)
    torch.testing.assert_close(head.mean(head.probs(torch.tensor([4.0, 7.5]))), torch.tensor([4.0, 7.5]))


def test_what_is_masked_or_infinite_has_no_part():
    y, mask = torch.tensor([1.0, 3.0, math.nan, 9.0, math.inf]), torch.tensor([True, True, False, False, True])
    head = running()
    logits = torch.randn(5, 51, requires_grad=True)
    loss = head.loss(logits, y, mask=mask)
    loss.backward()
    assert head.stats.tolist() == [2.0, 2.0, 2.0]
    assert not logits.grad[2:4].any()
    before = head.stats.clone()
    assert head.loss(logits, y, mask=torch.zeros(5, dtype=torch.bool)) == 0
    assert torch.equal(head.stats, before)


def test_units_are_those_of_the_targets():
    y = torch.linspace(90.0, 110.0, 101)
    head = see(running(), y).eval()
    torch.testing.assert_close(head.mean(head.probs(y)), y, rtol=1e-4, atol=0.0)
    report = head.range_report(torch.tensor([100.0, head.v_max + 4.0]))
    assert (report.above, report.below) == (0.5, 0.0)
    assert report.distance == pytest.approx(2.0, rel=1e-4)
    logits = torch.randn(4, 51)
    torch.testing.assert_close(head.std(logits), head.scale.float() * head.head.std(logits))
    target = torch.tensor([95.0, 100.0, 105.0, 99.0])
    each = head.loss(logits, target, reduction="none")
    torch.testing.assert_close(head.divergence(logits, target), each - torch.special.entr(head.probs(target)).sum(-1))


def test_a_network_learns_targets_of_unknown_size():
    torch.manual_seed(0)
    x = torch.randn(512, 2)
    y = 5_000 + 300 * x[:, 0]
    head = running()
    net = mlp((2, 32, head.bins))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(net(x), y).backward()
        optimizer.step()
    assert (head(net(x)) - y).square().mean().sqrt() < 30


def test_half_precision_and_checkpoints_keep_the_range():
    head = see(running(), 1e5 + torch.randn(50)).bfloat16()
    assert head.stats.dtype is torch.float64
    assert head(torch.zeros(51, dtype=torch.bfloat16)) == pytest.approx(1e5, abs=1.0)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other = running()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.stats, head.stats)


def test_compiles_whole():
    head, plain = running(), running()
    logits, y = torch.randn(9, 51), 40 + torch.randn(9)
    compiled = torch.compile(lambda z, t: head.loss(z, t) + head(z).sum(), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(logits, y), plain.loss(logits, y) + plain(logits).sum())
    torch.testing.assert_close(head.stats, plain.stats)


def half_of(rank_rows: list[list[float]]) -> torch.Tensor:
    mine = torch.tensor(rank_rows[torch.distributed.get_rank()])
    return see(running(), mine, mine + 1).stats


def test_processes_share_their_statistics(tmp_path):
    rows = [[1.0, 2.0, 9.0], [4.0]]
    first, second = run_in_processes(tmp_path, half_of, 2, rows)
    whole = torch.tensor(rows[0] + rows[1])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, see(running(), whole, whole + 1).stats)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="head: expected HLGauss or TwoHot, got C51"):
        RunningRange(C51(-3.0, 3.0))
    with pytest.raises(ValueError, match=r"decay: expected a number in \(0, 1\]"):
        RunningRange(TwoHot(-3.0, 3.0), decay=0.0)
    with pytest.raises(ValueError, match="target: expected numbers, got NaN"):
        see(running(), torch.tensor([math.nan]))
