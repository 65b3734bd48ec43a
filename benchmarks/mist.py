"""MIST: one pass of a trained network against estimators that search neighbors or train on the sample."""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

SHAPES, QUICK_SHAPES = ((64, 100, 2), (64, 500, 2), (64, 500, 6)), ((4, 50, 2),)
STEPS, QUICK_STEPS = 500, 5
CORRELATION = 0.6
Pairs = list[tuple[Tensor, Tensor]]


@register("mist", "mutual information of many samples by the shipped network")
def cases(options: Options) -> list[Case]:
    """Samples at once against KSG, and one sample against a training of InfoNCE."""
    shapes = QUICK_SHAPES if options.quick else SHAPES
    many = [Case(f"{b} samples/{n} points, {d}+{d} columns", partial(_build, b, n, d, options)) for b, n, d in shapes]
    return [*many, Case(f"1 sample/{shapes[-1][1]} points, 2+2 columns", partial(_build, 1, shapes[-1][1], 2, options))]


def _build(count: int, n: int, d: int, options: Options) -> Built:
    from infotorch.distributions import Normal, paired_covariance

    joint = Normal(paired_covariance(d, d, pairs=d, strength=(CORRELATION / (1 - CORRELATION)) ** 0.5), d)
    pairs = [joint.sample(n, options.seed + i) for i in range(count)]
    ours = version_of("infotorch") or "source tree"
    peers = [Subject("KSG", ours, partial(_ksg, pairs))]
    if count == 1:
        steps = QUICK_STEPS if options.quick else STEPS
        peers = [Subject(f"InfoNCE, {steps} steps", ours, partial(_infonce, pairs, steps))]
    gates = [] if options.quick or count > 1 else [Gate(peers[0].name, "time_ratio", at_least=50.0)]
    truth = torch.full((count,), joint.mutual_information(), dtype=torch.float64)
    return Built(
        ours=Subject("MIST", ours, partial(_mist, pairs)),
        peers=peers,
        reference=lambda: {"mean_information": truth.mean()},
        input_bytes=16 * count * n * d,
        gates=gates,
    )


def _mist(pairs: Pairs) -> Results:
    from infotorch.estimators import MIST

    return {"mean_information": MIST().estimate_many(pairs).mean()}


def _ksg(pairs: Pairs) -> Results:
    from infotorch.core.differential import ksg_mi

    return {"mean_information": torch.stack([ksg_mi(x, y) for x, y in pairs]).mean()}


def _infonce(pairs: Pairs, steps: int) -> Results:
    from infotorch.estimators import InfoNCE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short trainings say that they are short
        values = [InfoNCE(max_steps=steps, patience=steps, random_state=0).fit(*pair).value_ for pair in pairs]
    return {"mean_information": torch.tensor(values).mean()}
