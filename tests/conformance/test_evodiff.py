"""EVODiff's released sampler, call by call, and the baselines, on an exact denoiser of a Gaussian mixture."""

from __future__ import annotations

import torch
from helpers import dispatch

from infotorch.generative import (
    DDIM,
    DPMSolver2M,
    EDMSchedule,
    EVODiff,
    EVODiffStep,
    LinearVP,
    UniPC2,
    evodiff_sample,
    heun_sample,
    run_solver,
    time_grid,
)

SLUG = "evodiff"
TOLERANCES = {"float64": {"rtol": 1e-7, "atol": 1e-9}, "float32": {"rtol": 1e-3, "atol": 1e-3}}
SPACING = {"logSNR": "logsnr", "edm": "karras", "time_uniform": "time_uniform", "time_quadratic": "time_quadratic"}
WEIGHTS = {"r1": "rho1", "r2": "rho2", "r_i": "r", **{k: k for k in ("eta", "eta_star", "zeta", "zeta_star")}}
BASELINES = {
    "ddim": DDIM,
    "dpmpp2m": DPMSolver2M,
    "unipc2_bh1": lambda grid: UniPC2(grid, variant="bh1"),
    "unipc2_bh2": UniPC2,
}


def test_case(case) -> None:
    dispatch(case, {r".+": check_sampler})


def mixture(case, schedule):
    """The posterior mean of the clean data, in the order of the file's formula."""
    mean, var, weight = (case.inputs[f"gmm_{name}"] for name in ("mean", "var", "weight"))

    def model(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gap = x.flatten(1).unsqueeze(1) - alpha * mean
        spread = alpha**2 * var + sigma**2
        share = (weight.log() - 0.5 * (gap.square() / spread + spread.log()).sum(-1)).softmax(-1)
        return (share.unsqueeze(-1) * (mean + alpha * var / spread * gap)).sum(1).view_as(x)

    return model


def check_sampler(case) -> None:
    p = case.params
    case.allow_params(
        *("schedule", "beta0", "beta1", "steps", "nfe", "skip_type", "t_start", "t_end", "order", "denoise_to_zero"),
        *("lower_order_final", "shape", "dtype", "reference", "seed"),
    )
    tolerance = TOLERANCES[p["dtype"]]
    start = case.inputs["x_T"].to(getattr(torch, p["dtype"]))
    assert list(start.shape[1:]) == p["shape"]
    schedule = {"edm": EDMSchedule(), "vp_linear": LinearVP(p["beta0"], p["beta1"])}[p["schedule"]]
    grid = time_grid(schedule, p["steps"], SPACING[p["skip_type"]], start=p["t_start"], end=p["t_end"], single=True)
    for key, value in (("timesteps", grid.times), ("alpha", grid.alphas), ("sigma", grid.sigmas)):
        case.close(key, value, **tolerance)
    model = mixture(case, schedule)
    calls: list[tuple[torch.Tensor, ...]] = []

    def recorded(x, t):
        calls.append((x, m := model(x, t), t))
        return m

    steps: list[EVODiffStep] = []
    options = {key: p[key] for key in ("order", "lower_order_final", "denoise_to_zero")}
    final = evodiff_sample(recorded, start, grid, variant="official", on_step=steps.append, **options)
    assert len(calls) == p["nfe"]
    case.close("x_final", final, **tolerance)
    for key, values in zip(("model_x", "model_x0", "model_t"), zip(*calls, strict=True), strict=True):
        case.close(key, torch.stack(values), **tolerance)
    if p["lower_order_final"]:
        assert [step.i for step in steps] == list(range(2, p["steps"]))
        case.close("x_probe", torch.stack([step.probe for step in steps]), **tolerance)
        case.close("x", torch.stack([step.x for step in steps]), **tolerance)
        for key, name in WEIGHTS.items():
            value = torch.stack([step.weights[name] for step in steps]).flatten(2)
            case.close(key, value.expand_as(case.outputs[key]), **tolerance)
    check_baselines(case, model, start, grid, tolerance)
    check_reference(case, model, start, schedule)


def check_baselines(case, model, start, grid, tolerance) -> None:
    for name, solver in BASELINES.items():
        if f"baseline_{name}" in case.outputs:
            case.close(f"baseline_{name}", run_solver(model, start, solver(grid)), **tolerance)
    if "baseline_heun" in case.outputs:
        case.close("baseline_heun", heun_sample(model, start, grid), **tolerance)


def check_reference(case, model, start, schedule) -> None:
    """UniPC's solution on 2000 points, and ours on them: both are the solution of the ODE, to 1e-6."""
    p = case.params
    assert p["reference"] == "UniPC-2 bh2, 2000 logSNR steps"
    grid = time_grid(schedule, 2000, start=p["t_start"], end=p["t_end"])
    for solver in (UniPC2, EVODiff):
        case.close("reference", run_solver(model, start, solver(grid)), rtol=1e-5, atol=1e-5)
