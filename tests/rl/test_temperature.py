from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Gamma, kl_divergence

from infotorch.rl import FixedTemperature, GammaCurriculum, LinearTemperature, gamma_kl, importance_return, teacher_step


def episodes(count: int = 40, shape: float = 50.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    alpha = torch.tensor(rng.gamma(shape, 1e-3, count))
    return alpha, torch.tensor(rng.normal(15.0, 1.0, count)) + 100 * alpha


@pytest.mark.parametrize(("a", "b"), [(50.0, 40.0), (1.0, 50.0), (0.3, 2.0), (7.0, 7.0)])
def test_divergence_is_that_of_torch(a, b):
    p, q = (Gamma(torch.tensor(k, dtype=torch.float64), torch.tensor(1000.0, dtype=torch.float64)) for k in (a, b))
    assert float(gamma_kl(a, b)) == pytest.approx(float(kl_divergence(p, q)), rel=1e-10, abs=1e-12)


def test_importance_weights_are_density_ratios():
    alpha, returns = episodes()
    new, old = (
        Gamma(torch.tensor(k, dtype=torch.float64), torch.tensor(1e3, dtype=torch.float64)).log_prob(alpha)
        for k in (44.0, 50.0)
    )
    assert importance_return(alpha, returns, 44.0, 50.0) == pytest.approx(float(((new - old).exp() * returns).mean()))
    assert importance_return(alpha, returns, np.array([50.0, 44.0]), 50.0).shape == (2,)


@pytest.mark.parametrize("bound", [0.0, 18.0, 19.0, 19.5, 21.0])
@pytest.mark.parametrize("target", [1.0, 48.0, 80.0])
def test_exact_step_is_the_first_point_that_may_not_be_passed(bound, target):
    """Against a walk in small steps."""
    alpha, returns = episodes()
    step = teacher_step(alpha, returns, 50.0, target=target, performance_bound=bound)
    if float(returns.mean()) < bound:
        assert (step.shape, step.status) == (50.0, "frozen")
        return
    way = np.linspace(50.0, target, 200_001)
    allowed = gamma_kl(way, 50.0) <= 0.5
    allowed &= importance_return(alpha, returns, way, 50.0) >= bound
    walked = way[-1] if allowed.all() else way[max(int(allowed.argmin()) - 1, 0)]
    assert step.shape == pytest.approx(walked, abs=2 * abs(way[1] - way[0]))
    assert step.kl_to_old <= 0.5 + 1e-9
    assert (step.status == "reached") == (step.shape == target)


def test_at_the_target_nothing_moves():
    step = teacher_step(*episodes(shape=1.0), 1.0, performance_bound=0.0)
    assert (step.shape, step.kl_to_target, step.status) == (1.0, 0.0, "reached")


def test_return_exactly_at_the_bound_stays_if_any_step_lowers_it():
    alpha = torch.tensor([0.06, 0.06, 0.06], dtype=torch.float64)  # lower shapes make such draws rarer
    step = teacher_step(alpha, torch.full((3,), 0.1), 50.0, performance_bound=float(torch.full((3,), 0.1)[0].double()))
    assert step.shape == pytest.approx(50.0, abs=1e-9)


def test_extreme_ratios_stay_finite():
    step = teacher_step(torch.tensor([1e-30, 1e30]), torch.tensor([1.0, -1.0]), 50.0, performance_bound=-5.0)
    assert math.isfinite(step.shape)
    assert step.status == "moved"


@pytest.mark.parametrize("returns", [[1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_few_or_broken_episodes_are_skipped(returns):
    step = teacher_step(torch.full((len(returns),), 0.05), torch.tensor(returns), 50.0)
    assert (step.shape, step.status) == (50.0, "skipped")


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        ((torch.ones(3), torch.ones(2), 50.0), {}, "temperatures, returns"),
        ((torch.tensor([0.1, 0.0]), torch.ones(2), 50.0), {}, "temperatures"),
        ((torch.tensor([0.1, math.nan]), torch.ones(2), 50.0), {}, "temperatures"),
        ((torch.ones(2), torch.ones(2), 0.0), {}, "shape"),
        ((torch.ones(2), torch.ones(2), math.nan), {}, "shape"),
        ((torch.ones(2), torch.ones(2), 5.0), {"target": -1.0}, "target"),
        ((torch.ones(2), torch.ones(2), 5.0), {"rate": 0.0}, "rate"),
        ((torch.ones(2), torch.ones(2), 5.0), {"max_kl": 0.0}, "max_kl"),
    ],
)
def test_bad_input_is_named(arguments, options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        teacher_step(*arguments, **options)


def test_curriculum_waits_moves_and_resumes():
    torch.manual_seed(0)
    curriculum = GammaCurriculum(performance_bound=0.0)
    generator = torch.Generator().manual_seed(0)
    alpha = curriculum.sample(20, generator)
    assert alpha.dtype == torch.float32
    assert bool((alpha > 0).all())
    assert float(alpha.mean()) == pytest.approx(0.05, rel=0.1)
    curriculum.update(alpha, torch.ones(20), 0.1)
    assert curriculum.mean == 0.05  # not enough yet
    again = GammaCurriculum(performance_bound=0.0)
    again.load_state_dict(curriculum.state_dict())
    for c in (curriculum, again):
        c.update(alpha, torch.ones(20), 0.2)
    assert curriculum.mean == again.mean < 0.05
    assert [step.status for step in again.steps] == ["moved"]


def test_a_curriculum_that_stands_still_says_so():
    curriculum = GammaCurriculum(performance_bound=1.0, episodes=2)
    episodes = torch.tensor([0.05, 0.05]), torch.tensor([-100.0, -90.0])
    for _ in range(4):
        curriculum.update(*episodes, 0.5)
    with pytest.warns(UserWarning, match="performance_bound: five updates in a row"):
        curriculum.update(*episodes, 0.5)
    assert curriculum.mean == 0.05


def test_draws_below_a_float_stay_positive_and_high_cuts():
    curriculum = GammaCurriculum(start=1e-3, high=1e-2)
    drawn = curriculum.sample(200, torch.Generator().manual_seed(0))
    assert bool((drawn > 0).all())
    assert float(drawn.max()) <= 1e-2 + 1e-9


def test_fixed_and_linear():
    line, fixed = LinearTemperature(0.05, 0.001), FixedTemperature(0.01)
    for progress, mean in ((0.0, 0.05), (1 / 3, 0.0255), (2 / 3, 0.001), (1.0, 0.001)):
        line.update(torch.empty(0), torch.empty(0), progress)
        fixed.update(torch.empty(0), torch.empty(0), progress)
        assert line.mean == pytest.approx(mean)
        assert fixed.mean == 0.01


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: GammaCurriculum(start=0.0), "start"),
        (lambda: GammaCurriculum(episodes=1), "episodes"),
        (lambda: GammaCurriculum(episodes=200), "episodes"),
        (lambda: GammaCurriculum(high=0.0), "high"),
        (lambda: FixedTemperature(0.0), "value"),
        (lambda: FixedTemperature(math.nan), "value"),
        (lambda: LinearTemperature(fraction=0.0), "fraction"),
        (lambda: gamma_kl(-1.0, 1.0), "a"),
        (lambda: importance_return(torch.ones(2), torch.ones(2), -1.0, 1.0), "shape"),
    ],
)
def test_bad_options_are_named(build, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        build()
