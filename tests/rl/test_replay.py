"""Replay: rows, priorities against a plain computation, and continuation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infotorch.rl import ReplayBuffer, SumTree, Transitions


def rows(n: int, start: int = 0) -> Transitions:
    x = torch.arange(start, start + n, dtype=torch.float32)
    return Transitions(x.view(n, 1), torch.arange(n) % 3, x, x.view(n, 1) + 1, torch.full((n,), 0.9))


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100])
def test_tree_is_the_running_sum(size):
    rng = np.random.default_rng(0)
    tree, plain = SumTree(size), np.zeros(size)
    for _ in range(20):
        index = rng.integers(0, size, 7)
        values = rng.random(7) * (rng.random(7) < 0.8)
        tree.set(index, values)
        for i, value in zip(index, values, strict=True):
            plain[i] = value
    plain[0] += 1
    tree.set(np.array([0]), plain[:1])
    assert tree.total == pytest.approx(plain.sum())
    mass = rng.random(500) * plain.sum() * (1 - 1e-9)
    np.testing.assert_array_equal(tree.find(mass), np.searchsorted(plain.cumsum(), mass, side="right"))
    assert plain[tree.find(np.array([tree.total]))] > 0  # never an empty leaf, the very end included


def test_old_rows_are_overwritten():
    buffer = ReplayBuffer(10)
    for start in range(0, 24, 4):
        buffer.add(rows(4, start))
    assert len(buffer) == 10
    drawn, index, weight = buffer.sample(500)
    assert set(drawn.reward.tolist()) == set(map(float, range(14, 24)))
    assert torch.equal(drawn.next_obs, drawn.obs + 1)
    assert torch.equal(weight, torch.ones(500))
    buffer.update(index, torch.ones(500))  # uniform draws have no priorities
    buffer.add(rows(25, 100))
    assert set(buffer.sample(500)[0].reward.tolist()) == set(map(float, range(115, 125)))


@pytest.mark.parametrize("capacity", [3, 1500, 4000])
def test_rows_that_come_one_by_one(capacity):
    """Continuous actions, in memory that grows."""
    buffer, x = ReplayBuffer(capacity), torch.arange(2500.0)
    for i in range(2500):
        row = x[i : i + 1]
        buffer.add(Transitions(row.view(1, 1), row.repeat(2).view(1, 2), row, row.view(1, 1) + 1, row * 0))
    again = ReplayBuffer(capacity, seed=7)
    again.load_state_dict(buffer.state_dict())
    for b in (buffer, again):
        b.add(Transitions(*(torch.full((1, *shape), -1.0) for shape in ((1,), (2,), (), (1,))), torch.zeros(1)))
    drawn = [b.sample(20_000)[0] for b in (buffer, again)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    kept = min(capacity, 2501)
    assert len(buffer) == kept
    values = set(drawn[0].reward.tolist())
    assert values <= {-1.0, *map(float, range(2501 - kept, 2500))}
    assert len(values) > 0.9 * kept
    assert torch.equal(drawn[0].action, drawn[0].reward[:, None].repeat(1, 2))


def test_draws_follow_the_priorities_and_weights_undo_them():
    buffer = ReplayBuffer(8, alpha=0.6, beta=0.5, eps=0.01)
    buffer.add(rows(6))
    assert len(set(buffer.sample(600)[0].reward.tolist())) == 6  # new rows are equal
    error = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5, 4.0])
    buffer.update(torch.arange(6), error)
    p = (error.abs() + 0.01) ** 0.6
    p = (p / p.sum()).double()
    _, index, weight = buffer.sample(60_000)
    torch.testing.assert_close(torch.bincount(index, minlength=6) / 60_000, p, atol=1e-3, rtol=0, check_dtype=False)
    expected = (6 * p[index]) ** -0.5
    torch.testing.assert_close(weight.double(), expected / expected.max(), rtol=1e-5, atol=0)
    buffer.add(rows(1, 50))
    assert buffer.tree[np.array([6])] == pytest.approx((4.01) ** 0.6)  # the largest so far


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_restored_buffer_draws_the_same(alpha):
    first, second = (ReplayBuffer(16, alpha=alpha, seed=seed) for seed in (1, 2))
    first.add(rows(12))
    _, index, _ = first.sample(4)
    first.update(index, torch.arange(4.0))
    second.load_state_dict(first.state_dict())
    for buffer in (first, second):
        buffer.add(rows(7, 30))
    drawn = [(*rows, *rest) for rows, *rest in (buffer.sample(9) for buffer in (first, second))]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_an_empty_buffer_is_restored():
    buffer = ReplayBuffer(4)
    buffer.load_state_dict(ReplayBuffer(4).state_dict())
    assert not len(buffer)


GOOD = rows(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ReplayBuffer(0), "capacity: expected"),
        (lambda: ReplayBuffer(4, alpha=1.5), "alpha: expected"),
        (lambda: ReplayBuffer(4, eps=0.0), "eps: expected"),
        (lambda: ReplayBuffer(4).sample(1), "at least one stored transition"),
        (lambda: GOOD._replace(reward=torch.ones(3)).check(), r"reward: expected shape \(4,\), got \(3,\)"),
        (lambda: GOOD._replace(reward=torch.full((4,), torch.nan)).check(), "reward: expected finite"),
        (lambda: GOOD._replace(discount=torch.full((4,), 1.5)).check(), r"discount: expected numbers in \[0, 1\]"),
        (lambda: GOOD._replace(next_obs=torch.ones(4, 2)).check(), "next_obs: expected shape"),
        (lambda: GOOD._replace(action=torch.ones(4)).check(), "action: expected indices"),
        (lambda: GOOD._replace(action=torch.ones(3, 2)).check(), r"action: expected indices \(4,\) or floating-point"),
        (lambda: GOOD._replace(action=torch.ones(4, 2).long()).check(), r"action: .* got \(4, 2\) of torch.int64"),
        (lambda: GOOD._replace(action=torch.full((4, 2), torch.nan)).check(), "action: expected finite"),
        (lambda: GOOD._replace(action=torch.ones(4, 2)).check(actions=2), r"action: expected shape \(4,\)"),
        (lambda: GOOD.check(actions=2), r"action: expected indices in \[0, 2\), got 0 to 2"),
        (lambda: Transitions(*(x[:0] for x in GOOD)).check(), "at least one transition"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_other_shapes_and_other_buffers_are_refused():
    buffer = ReplayBuffer(4)
    buffer.add(GOOD)
    with pytest.raises(ValueError, match=r"obs: expected rows of shape \(1,\), got \(2,\)"):
        buffer.add(GOOD._replace(obs=torch.ones(4, 2), next_obs=torch.ones(4, 2)))
    with pytest.raises(ValueError, match=r"action: expected rows of shape \(\), got \(2,\)"):
        buffer.add(GOOD._replace(action=torch.ones(4, 2)))
    for other in (ReplayBuffer(3), ReplayBuffer(4, alpha=0.5)):
        with pytest.raises(ValueError, match="same capacity and kind"):
            other.load_state_dict(buffer.state_dict())
