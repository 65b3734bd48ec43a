from __future__ import annotations

import math

import pytest
import torch

from infotorch.core import categorical
from infotorch.rl import MATCHING_PENNIES, ROCK_PAPER_SCISSORS, exploitability, gradient_play, logit_qre, nash

UNEVEN = torch.tensor([[3.0, -1.0], [-1.0, 1.0], [0.0, 0.5]], dtype=torch.float64)


def objective(x, y, tau, alpha):
    return x @ UNEVEN @ y + tau * categorical.entropy(probs=x) - alpha * categorical.entropy(probs=y)


def test_qre_is_the_saddle_point_and_a_fixed_point():
    found = logit_qre(UNEVEN, 0.3, 0.2)
    torch.testing.assert_close(found.x, torch.softmax(UNEVEN @ found.y / 0.3, 0), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.y, torch.softmax(-found.x @ UNEVEN / 0.2, 0), atol=1e-9, rtol=0)
    best = objective(found.x, found.y, 0.3, 0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x, y = (torch.rand(n, generator=generator, dtype=torch.float64) for n in UNEVEN.shape)
        assert objective(x / x.sum(), found.y, 0.3, 0.2) <= best + 1e-9
        assert objective(found.x, y / y.sum(), 0.3, 0.2) >= best - 1e-9


def test_limits_of_the_temperature():
    truth = nash(UNEVEN)
    found = logit_qre(UNEVEN, 0.05, torch.tensor([1e6, 1.0, 0.2, 0.05]), tol=1e-7)
    torch.testing.assert_close(found.y[0], torch.full((2,), 0.5, dtype=torch.float64), atol=1e-5, rtol=0)
    gaps = exploitability(UNEVEN, found.x, found.y)
    assert bool((gaps.diff() < 0).all())
    assert float(gaps[-1]) < 0.15
    assert float(found.value[-1]) == pytest.approx(float(truth.value), abs=0.05)


def test_nash_is_not_exploitable():
    for game in (UNEVEN, ROCK_PAPER_SCISSORS, MATCHING_PENNIES, UNEVEN.T):
        assert nash(game).residual == pytest.approx(0.0, abs=1e-9)
    assert float(nash(UNEVEN[:2]).value) == pytest.approx(1 / 3)


@pytest.mark.parametrize("game", [MATCHING_PENNIES, ROCK_PAPER_SCISSORS])
def test_annealed_play_converges_where_plain_play_does_not(game):
    plain, annealed = (
        gradient_play(game, steps=3000, alpha=alpha, generator=torch.Generator().manual_seed(1))
        for alpha in (0.0, lambda progress: 0.5 * (1 - progress))
    )
    assert float(plain.exploitability[-500:].mean()) > 0.5
    assert float(annealed.exploitability[-500:].mean()) < 0.05


def test_same_seed_same_play():
    a, b = (gradient_play(UNEVEN, steps=5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.exploitability, b.exploitability)
    assert a.x.shape == (6, 3)


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: logit_qre(torch.ones(3), 1.0, 1.0), ValueError, "payoff"),
        (lambda: logit_qre(torch.full((2, 2), math.nan), 1.0, 1.0), ValueError, "payoff"),
        (lambda: logit_qre([[1.0]], 1.0, 1.0), TypeError, "payoff"),  # pyright: ignore[reportArgumentType]
        (lambda: logit_qre(UNEVEN, 0.0, 1.0), ValueError, "tau"),
        (lambda: logit_qre(UNEVEN, 1.0, math.nan), ValueError, "alpha"),
        (lambda: exploitability(UNEVEN, torch.ones(2) / 2, torch.ones(2) / 2), ValueError, "x"),
        (lambda: exploitability(UNEVEN, torch.ones(3) / 3, torch.ones(2)), ValueError, "y"),
        (lambda: gradient_play(UNEVEN, steps=0), ValueError, "steps"),
        (lambda: gradient_play(UNEVEN, steps=1, alpha=-1.0), ValueError, "alpha"),
        (lambda: gradient_play(UNEVEN, steps=1, lr=0.0), ValueError, "lr"),
    ],
)
def test_bad_input_is_named(call, error, name):
    with pytest.raises(error, match=f"^{name}: expected"):
        call()


def test_no_convergence_is_an_error():
    with pytest.raises(RuntimeError, match="raise the temperatures"):
        logit_qre(UNEVEN, 1e-3, 1e-3, max_iter=100)
