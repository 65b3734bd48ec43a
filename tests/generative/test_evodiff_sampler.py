"""The corrected EVODiff: order, accuracy, shapes, types, refusals; and where the released one falls short."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from infotorch.generative import (
    DDIM,
    DPMSolver2M,
    EDMSchedule,
    EVODiff,
    EVODiffOfficial,
    LinearVP,
    MixtureDenoiser,
    UniPC2,
    dynamic_threshold,
    evodiff_sample,
    heun_sample,
    run_solver,
    time_grid,
)

SCHEDULES = {"edm": EDMSchedule(), "vp": LinearVP()}


def mixture(form: str, seed: int = 0, *, dim: int = 2, std: float = 0.5) -> MixtureDenoiser:
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(4, dim, generator=g, dtype=torch.float64)
    variances = (std * (0.5 + torch.rand(4, dim, generator=g, dtype=torch.float64))).square()
    weights = 0.5 + torch.rand(4, generator=g, dtype=torch.float64)
    return MixtureDenoiser(weights, means, variances, SCHEDULES[form])


def noise(form: str, *shape: int, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64) * (80 if form == "edm" else 1)


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


@cache
def solved(form: str) -> tuple[MixtureDenoiser, torch.Tensor, torch.Tensor]:
    model, x = mixture(form), noise(form, 32, 2)
    return model, x, run_solver(model, x, UniPC2(time_grid(SCHEDULES[form], 3000)))


def orders(form: str, solver, steps=(40, 80, 160, 320)) -> list[float]:
    model, x, truth = solved(form)
    errors = [rms(run_solver(model, x, solver(time_grid(SCHEDULES[form], n))), truth) for n in steps]
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize("form", ["edm", "vp"])
def test_the_corrected_sampler_is_of_second_order_and_more_and_the_released_one_is_not(form) -> None:
    assert min(orders(form, EVODiff)) > 2.7
    assert min(orders(form, UniPC2)) > 2.7
    assert 1.9 < min(orders(form, DPMSolver2M)) < 2.1
    assert max(orders(form, DDIM)) < 1.2
    assert orders(form, EVODiffOfficial, (320, 640))[0] < 0.5


@pytest.mark.parametrize("form", ["edm", "vp"])
def test_the_probe_is_of_second_order_by_itself(form) -> None:
    class Probe(EVODiff):
        def correct(self, x, m):
            super().correct(x, m)
            return x

    assert 1.8 < min(orders(form, Probe)) < 2.2


def test_no_term_is_left_out_for_a_normal_distribution() -> None:
    """Closed form: the ODE moves normal data by the ratio of standard deviations."""
    one = MixtureDenoiser(torch.ones(1), torch.tensor([[3.0]]).double(), torch.tensor([[0.25]]).double())
    x = noise("edm", 8, 1)
    truth = 3 + (x - 3) * math.sqrt((0.25 + 0.002**2) / (0.25 + 80**2))
    errors = [rms(evodiff_sample(one, x, time_grid(EDMSchedule(), n)), truth) for n in (10, 20, 40)]
    assert errors[0] < 0.06
    assert errors[2] < errors[1] / 3.5 < errors[0] / 12


@pytest.mark.parametrize(("form", "spacing"), [("edm", "logsnr"), ("edm", "karras"), ("vp", "logsnr")])
def test_it_beats_both_baselines_over_mixtures(form, spacing) -> None:
    """The mean over mixtures that played no part in choosing its constants."""
    x = noise(form, 32, 16)
    for nfe in (8, 12, 20):
        errors = dict.fromkeys(
            (EVODiff, DPMSolver2M, UniPC2), 0.0
        )  # logarithms: single paths to another mode weigh less
        for seed in range(4):
            model = mixture(form, seed, dim=16)
            truth = run_solver(model, x, UniPC2(time_grid(SCHEDULES[form], 300)))
            for solver in errors:
                y = run_solver(model, x, solver(time_grid(SCHEDULES[form], nfe, spacing)))
                errors[solver] += math.log(rms(y, truth))
        assert errors[EVODiff] < min(errors[DPMSolver2M], errors[UniPC2])


@pytest.mark.parametrize("variant", ["corrected", "official"])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (3, 2, 4, 4), (2, 6)])
def test_every_shape_and_one_weight_per_sample_and_channel(variant, shape) -> None:
    model = mixture("edm", dim=math.prod(shape))
    x, steps = noise("edm", 4, *shape), []
    y = evodiff_sample(model, x, time_grid(EDMSchedule(), 6), variant=variant, on_step=steps.append)
    assert y.shape == x.shape
    name = "rate" if variant == "corrected" else "eta"
    kept = (4, shape[0] if len(shape) > 1 else 1, *[1] * (len(shape) - 1))
    assert {step.weights[name].shape for step in steps if step.weights} == {kept}
    assert all(step.x.shape == step.probe.shape == x.shape for step in steps)
    alone = evodiff_sample(model, x[:1], time_grid(EDMSchedule(), 6), variant=variant)
    torch.testing.assert_close(alone, y[:1])


@pytest.mark.parametrize("variant", ["corrected", "official"])
def test_reduce_dims_are_the_axes_of_the_weights(variant) -> None:
    model, x = mixture("edm", dim=12), noise("edm", 3, 12)
    grid = time_grid(EDMSchedule(), 6)
    flat = evodiff_sample(model, x, grid, variant=variant)
    image = evodiff_sample(model, x.view(3, 3, 2, 2), grid, variant=variant, reduce_dims=(1, 2, -1))
    torch.testing.assert_close(image.flatten(1), flat)
    assert rms(evodiff_sample(model, x.view(3, 3, 2, 2), grid, variant=variant).flatten(1), flat) > 1e-6


@pytest.mark.parametrize("variant", ["corrected", "official"])
def test_predictions_and_time_forms_agree(variant) -> None:
    grid, x = time_grid(LinearVP(), 8), noise("vp", 4, 2)
    model = mixture("vp")

    def other(kind):
        def net(x, t):
            a, s, m = LinearVP().alpha(t), LinearVP().sigma(t), model(x, t)
            eps = (x - a * m) / s
            return eps if kind == "epsilon" else a * eps - s * m

        return net

    truth = evodiff_sample(model, x, grid, variant=variant)
    for kind in ("epsilon", "v"):
        torch.testing.assert_close(evodiff_sample(other(kind), x, grid, variant=variant, prediction=kind), truth)


def test_vp_is_edm_in_other_units() -> None:
    """The corrected sampler only knows the noise-to-signal ratio; the same grid of it gives the same sample."""
    vp = time_grid(LinearVP(), 7, "time_uniform")
    kappas = vp.sigmas / vp.alphas
    x = noise("vp", 4, 2)
    y = evodiff_sample(mixture("vp"), x, vp) / vp.alphas[-1]
    torch.testing.assert_close(evodiff_sample(mixture("edm"), x / vp.alphas[0], kappas), y)


@pytest.mark.parametrize("variant", ["corrected", "official"])
@pytest.mark.parametrize("output", [0.0, 3.0])
def test_a_constant_denoiser_gives_the_exact_answer_without_nan(variant, output) -> None:
    x = noise("edm", 4, 3)
    grid = time_grid(EDMSchedule(), 8)
    y = evodiff_sample(lambda x, t: torch.full_like(x, output), x, grid, variant=variant)
    assert y.isfinite().all()
    if variant == "corrected":
        torch.testing.assert_close(y, output + (x - output) * 0.002 / 80)


@pytest.mark.parametrize("variant", ["corrected", "official"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(variant, dtype) -> None:
    model, x = mixture("vp"), noise("vp", 16, 2).to(dtype)
    seen = []

    def net(x, t):
        seen.append(x.dtype)
        return model(x.double(), t).to(dtype)

    y = evodiff_sample(net, x, time_grid(LinearVP(), 8), variant=variant)
    assert y.dtype == dtype
    assert set(seen) == {dtype}
    exact = evodiff_sample(model, x.double(), time_grid(LinearVP(), 8), variant=variant)
    tolerance = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}[dtype]
    assert rms(y.double(), exact) < tolerance


@pytest.mark.parametrize("solver", [EVODiff, EVODiffOfficial, DPMSolver2M, UniPC2, DDIM])
def test_noise_may_end_at_zero_and_a_solver_runs_again_after_reset(solver) -> None:
    model, x = mixture("edm"), noise("edm", 4, 2)
    run = solver([80.0, 10.0, 2.0, 0.5, 0.1, 0.0])
    first = run_solver(model, x, run)
    assert first.isfinite().all()
    with pytest.raises(RuntimeError, match="at most 5 calls before reset"):
        run.step(x, x)
    run.reset()
    assert torch.equal(run_solver(model, x, run), first)


def test_calls() -> None:
    model, x = mixture("edm"), noise("edm", 2, 2)
    grid = time_grid(EDMSchedule(), 6)
    calls = []

    def net(x, t):
        calls.append(float(t))
        return model(x, t)

    evodiff_sample(net, x, grid)
    assert calls == grid.times[:-1].tolist()
    for options in ({"denoise_to_zero": True}, {"variant": "official", "lower_order_final": False}):
        calls.clear()
        evodiff_sample(net, x, grid, **options)
        assert calls == grid.times.tolist()
    calls.clear()
    heun_sample(net, x, grid)
    assert len(calls) == 12


def test_thresholding_bounds_the_sample() -> None:
    model, x = mixture("edm", dim=8), noise("edm", 4, 8)
    grid = [80.0, 10.0, 1.0, 0.1, 0.0]
    assert evodiff_sample(model, x, grid).abs().max() > 1.2
    assert evodiff_sample(lambda x, t: 9 * model(x, t), x, grid, threshold=0.5, denoise_to_zero=False).abs().max() < 2.5
    inside = 0.5 * torch.rand(3, 2, 4)
    assert torch.equal(dynamic_threshold(inside), inside)
    halves = dynamic_threshold(100 * inside.half(), 0.9)
    assert halves.dtype == torch.float16
    assert halves.abs().max() == 1


def test_official_last_step_is_euler_where_it_would_flip_the_state() -> None:
    x, grid = noise("edm", 2, 2), [80.0, 20.0, 5.0]
    y = evodiff_sample(lambda x, t: 0 * x, x, grid, variant="official")
    torch.testing.assert_close(y, x * 5 / 80)


def test_there_is_no_graph() -> None:
    x = noise("edm", 2, 2).requires_grad_()
    assert not evodiff_sample(mixture("edm"), x, [80.0, 1.0, 0.1]).requires_grad


GOOD = [80.0, 1.0, 0.1]


@pytest.mark.parametrize(
    ("x", "sigmas", "options", "message"),
    [
        (torch.ones(2, 2), [80.0, 0.1], {}, r"sigmas: expected at least 3 points \(2 steps, NFE >= 2\), got 2"),
        (torch.ones(2, 2), [0.1, 1.0, 80.0], {}, "sigmas: expected noise-to-signal ratios that fall"),
        (torch.ones(2, 2), [80.0, 1.0, 1.0], {}, "sigmas: expected noise-to-signal ratios that fall"),
        (torch.ones(2, 2), [80.0, 0.0, -1.0], {}, "sigmas: expected positive signal and noise levels"),
        (torch.ones(2, 2), [80.0, math.nan, 0.1], {}, "sigmas|times: expected finite numbers"),
        (torch.ones(2, 2), torch.ones(3, 3), {}, "times: expected shape"),
        (torch.ones(2, 2), GOOD, {"order": 3}, r"order: expected 2 \(the method has no other\), got 3"),
        (torch.ones(2, 2), GOOD, {"order": 1}, "order: expected 2"),
        (torch.ones(2, 2), GOOD, {"variant": "oficial"}, "did you mean 'official'"),
        (torch.ones(2, 2), GOOD, {"prediction": "noise"}, "prediction: expected one of denoised, epsilon, v"),
        (torch.ones(2, 2), GOOD, {"lower_order_final": False}, "lower_order_final: expected True"),
        (torch.ones(2, 2), GOOD, {"reduce_dims": (0,)}, "reduce_dims: expected distinct axes .* without the batch"),
        (torch.ones(2, 2), GOOD, {"reduce_dims": (2,)}, "reduce_dims: expected distinct axes"),
        (torch.ones(2, 2), GOOD, {"threshold": 2.0}, "quantile: expected a number in"),
        (torch.ones(2, 2), [80.0, 1.0, 0.0], {"denoise_to_zero": True}, "last noise level above 0"),
        (torch.full((2, 2), math.nan), GOOD, {}, "x: expected finite numbers"),
        (torch.ones(2), GOOD, {}, r"x: expected shape \(B, D\)"),
    ],
)
def test_bad_input_is_refused(x, sigmas, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        evodiff_sample(lambda x, t: 0.5 * x, x, sigmas, **options)


def test_bad_models_are_refused() -> None:
    x = torch.ones(2, 2)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor"):
        evodiff_sample(lambda x, t: x, x.long(), GOOD)
    with pytest.raises(ValueError, match=r"model: expected an output of shape \(2, 2\), got \(2, 1\)"):
        evodiff_sample(lambda x, t: x[:, :1], x, GOOD)
    for sampler in (evodiff_sample, heun_sample):
        with pytest.raises(ValueError, match="model: expected finite outputs"):
            sampler(lambda x, t: x * math.nan, x, GOOD)
    with pytest.raises(TypeError, match=r"model's output: expected a torch.Tensor"):
        evodiff_sample(lambda x, t: None, x, GOOD)
    with pytest.raises(ValueError, match="variant: expected one of bh1, bh2"):
        UniPC2(GOOD, variant="bh3")
