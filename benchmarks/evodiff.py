"""Solvers of diffusion models: what a step costs beside the network, and the error that so many calls leave."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Options, Results, Subject, register
from benchmarks.machine import version_of

SHAPES, QUICK_SHAPES = ((16, 3, 32, 32), (4, 4, 64, 64)), ((2, 3, 8, 8),)
STEPS = 10
NFES, QUICK_NFES = (5, 8, 10, 15, 20), (10,)
STARTS = 256


@register("evodiff", "diffusion samplers: overhead per step, error per network call")
def cases(options: Options) -> list[Case]:
    """Solvers without a network at two shapes; then the error on an exact mixture at equal calls."""
    shapes, nfes = (QUICK_SHAPES, QUICK_NFES) if options.quick else (SHAPES, NFES)
    overhead = [
        Case(f"overhead/{STEPS} steps/{'x'.join(map(str, s))} float32", partial(_overhead, s, options)) for s in shapes
    ]
    errors = [Case(f"error/VP, logsnr, 16-D mixture/{nfe} calls", partial(_error, nfe, options)) for nfe in nfes]
    return overhead + errors


def _overhead(shape: tuple[int, ...], options: Options) -> Built:
    """All steps of a run with predictions that are there already: nothing but the solver is timed."""
    generator = torch.Generator().manual_seed(options.seed)
    x, *outputs = (torch.randn(shape, generator=generator).to(options.device) for _ in range(STEPS + 1))
    names = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    version = version_of("diffusers")
    peers = [
        Subject(
            f"diffusers.{name}",
            version or "-",
            partial(_peer, name, x, outputs) if version else None,
            "" if version else "not installed",
        )
        for name in names
    ]
    return Built(
        ours=Subject(
            "EVODiffScheduler" if version else "EVODiff",
            version_of("infotorch") or "source tree",
            partial(_ours, x, outputs, bool(version)),
        ),
        peers=[
            *peers,
            Subject("EVODiffOfficial", "-", partial(_solver, "EVODiffOfficial", x, outputs), "the released steps"),
        ],
        reference=partial(_ours, x.double(), [m.double() for m in outputs], bool(version)),
        input_bytes=(STEPS + 1) * x.numel() * 4,
    )


def _ours(x: Tensor, outputs: list[Tensor], scheduler: bool) -> Results:
    if not scheduler:
        return _solver("EVODiff", x, outputs)
    from infotorch.integrations.diffusers import EVODiffScheduler

    return {"x": _run(EVODiffScheduler(prediction_type="sample"), x, outputs)}


def _solver(name: str, x: Tensor, outputs: list[Tensor]) -> Results:
    from infotorch import generative

    solver = getattr(generative, name)(generative.time_grid(generative.LinearVP(), STEPS))
    for m in outputs:
        x = solver.step(m, x)
    return {}


def _peer(name: str, x: Tensor, outputs: list[Tensor]) -> Results:
    import diffusers

    _run(getattr(diffusers, name)(prediction_type="sample"), x, outputs)
    return {}


def _run(scheduler: Any, x: Tensor, outputs: list[Tensor]) -> Tensor:
    scheduler.set_timesteps(STEPS, device=x.device)
    for t, m in zip(scheduler.timesteps, outputs, strict=True):
        x = scheduler.step(m, t, x, return_dict=False)[0]
    return x


def _error(nfe: int, options: Options) -> Built:
    from infotorch import generative as g

    generator = torch.Generator().manual_seed(options.seed)
    means = torch.randn(4, 16, generator=generator, dtype=torch.float64)
    variances = (0.5 * (0.5 + torch.rand(4, 16, generator=generator, dtype=torch.float64))).square()
    schedule = g.LinearVP()
    model = g.MixtureDenoiser(torch.ones(4), means.to(options.device), variances.to(options.device), schedule)
    x = torch.randn(STARTS, 16, generator=generator, dtype=torch.float64).to(options.device)

    truth = g.run_solver(model, x, g.UniPC2(g.time_grid(schedule, 1000)))

    def sample(solver: Callable[[Any], g.MultistepSolver]) -> Results:
        y = g.run_solver(model, x, solver(g.time_grid(schedule, nfe)))
        return {"rms": (y - truth).square().mean().sqrt()}

    others = (("DPM-Solver++(2M)", g.DPMSolver2M), ("UniPC-2", g.UniPC2), ("DDIM", g.DDIM))
    note = "as many calls; the errors are RMS distances to the solution"
    return Built(
        ours=Subject("EVODiff", version_of("infotorch") or "source tree", partial(sample, g.EVODiff)),
        peers=[
            Subject(name, "-", partial(sample, solver), note)
            for name, solver in (*others, ("EVODiffOfficial", g.EVODiffOfficial))
        ],
        reference=lambda: {"rms": torch.zeros((), dtype=torch.float64)},
        input_bytes=x.numel() * 8,
    )
