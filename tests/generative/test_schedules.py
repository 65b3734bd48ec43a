"""Schedules invert, grids are what they say, and nothing crooked gets in."""

from __future__ import annotations

import pytest
import torch

from infotorch.generative import DiscreteVP, EDMSchedule, LinearVP, MixtureDenoiser, NoiseGrid, time_grid

DISCRETE = DiscreteVP((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
SPACINGS = ("logsnr", "karras", "time_uniform", "time_quadratic")


@pytest.mark.parametrize("schedule", [EDMSchedule(), LinearVP(), DISCRETE], ids=["edm", "linear", "discrete"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_grids(schedule, spacing) -> None:
    grid = time_grid(schedule, 9, spacing)
    assert len(grid.times) == 10
    ends = torch.tensor([schedule.start, schedule.end], dtype=torch.float64)
    torch.testing.assert_close(grid.times[[0, -1]], ends, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.time(grid.lambdas), grid.times, rtol=1e-9, atol=1e-9)
    uniform = {
        "logsnr": grid.lambdas,
        "karras": (grid.sigmas / grid.alphas).pow(1 / 7),
        "time_uniform": grid.times,
        "time_quadratic": grid.times.sqrt(),
    }[spacing]
    torch.testing.assert_close(uniform.diff(), uniform.diff().mean().expand(9), rtol=1e-6, atol=1e-9)
    if not isinstance(schedule, EDMSchedule):
        torch.testing.assert_close(grid.alphas.square() + grid.sigmas.square(), torch.ones(10, dtype=torch.float64))
    rounded = time_grid(schedule, 9, spacing, single=True)
    torch.testing.assert_close(rounded.times, grid.times, rtol=1e-5, atol=1e-5)
    assert spacing == "time_uniform" or not torch.equal(rounded.times, grid.times)


def test_discrete_levels_are_those_given() -> None:
    squares = torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64)
    times = torch.arange(3.0)
    torch.testing.assert_close(DiscreteVP(squares).alpha(times).square(), squares)
    assert DiscreteVP(squares).time(torch.tensor([99.0, -99.0])).tolist() == [0.0, 2.0]


def test_bad_schedules_are_refused() -> None:
    for values in ([0.5], [0.1, 0.9], [1.0, 0.5], [0.5, 0.0]):
        with pytest.raises(ValueError, match="alphas_cumprod: expected"):
            DiscreteVP(torch.tensor(values))
    with pytest.raises(ValueError, match="did you mean 'karras'"):
        time_grid(EDMSchedule(), 5, "karas")
    with pytest.raises(ValueError, match="steps: expected a number in"):
        time_grid(EDMSchedule(), 1)
    with pytest.raises(ValueError, match=r"end: expected a time in \[0, start\)"):
        time_grid(EDMSchedule(), 5, start=1.0, end=2.0)
    with pytest.raises(ValueError, match="rho"):
        time_grid(EDMSchedule(), 5, "karras", rho=0.0)
    levels = torch.tensor([3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r"alphas: expected shape \(3,\)"):
        NoiseGrid(levels, torch.ones(2), levels)
    with pytest.raises(ValueError, match="weights, means, variances: expected shapes"):
        MixtureDenoiser(torch.ones(2), torch.ones(3, 1), torch.ones(3, 1))
    with pytest.raises(ValueError, match="expected positive numbers"):
        MixtureDenoiser(torch.ones(2), torch.ones(2, 1), torch.zeros(2, 1))


def test_samples_of_the_mixture_have_its_moments() -> None:
    model = MixtureDenoiser(torch.tensor([3.0, 1.0]), torch.tensor([[0.0], [4.0]]), torch.full((2, 1), 0.25))
    x = model.sample(20000, generator=torch.Generator().manual_seed(0))
    assert abs(float(x.mean()) - 1) < 0.05
    assert abs(float(x.var()) - 3.25) < 0.1
