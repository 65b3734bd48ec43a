"""Penalties of fairness, value and gradient: one number, one category, and categories together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

SIZES, QUICK_SIZES = (2_000, 10_000, 100_000, 1_000_000), (1_000,)
PAIRS_SIZES = (2_000, 10_000)  # of the one penalty that visits all pairs
PAIRS_LIMIT = 2_000  # above this no n x n matrices: they take minutes; values are checked by dcor where it can
DCOR, DENSE = "dcor", "torch, dense matrices"
Penalty = Callable[[Tensor, Sequence[Tensor]], Tensor]


@register("fairness", "penalties on the dependence of a prediction on protected attributes")
def cases(options: Options) -> list[Case]:
    """Every penalty on categories and on numbers; JdCov and CCdCov on both together."""
    sizes = QUICK_SIZES if options.quick else SIZES
    kinds = [(f"dCov/{what}", sizes) for what in ("number", "category")]
    kinds += [(f"JdCov/{what}", sizes) for what in ("categories", "mixed")]
    kinds += [("CCdCov/categories", sizes), ("CCdCov/mixed", QUICK_SIZES if options.quick else PAIRS_SIZES)]
    return [
        Case(f"{kind}/{mode}/{n} float64", partial(_build, *kind.split("/"), n, mode != "forward", options))
        for kind, many in kinds
        for mode in ("forward", "forward+backward")
        for n in many
    ]


def _build(penalty: str, what: str, n: int, backward: bool, options: Options) -> Built:
    generator = torch.Generator(options.device).manual_seed(options.seed)
    draw = {"generator": generator, "device": options.device}
    race, sex = (torch.randint(k, (n,), **draw) for k in (6, 2))
    age = torch.randn(n, dtype=torch.float64, **draw)
    f = torch.randn(n, dtype=torch.float64, **draw) + 0.5 * (sex ^ (race > 2)) + 0.3 * age
    attributes = {"number": [age], "category": [race], "categories": [race, sex], "mixed": [race, sex, age]}[what]
    peers, small = [], n <= PAIRS_LIMIT
    if penalty != "JdCov":
        peers.append(_dcor(f, attributes, backward=backward, small=small))
    dense = partial(_run, _dense_of(penalty), f, attributes, backward) if small else None
    peers.append(Subject(DENSE, version_of("torch") or "-", dense, "" if dense else "left out: n x n matrices"))
    return Built(
        ours=Subject(
            f"{penalty} penalty", version_of("infotorch") or "source tree", _ours(penalty, f, attributes, backward)
        ),
        peers=peers,
        reference=lambda: _reference(penalty, f, attributes, backward, small),
        input_bytes=f.numel() * 8 * (1 + len(attributes)),
        gates=[Gate(peers[0].name, "ours_max_abs_error", at_most=1e-9)],
    )


def _ours(penalty: str, f: Tensor, attributes: Sequence[Tensor], backward: bool) -> Callable[[], Results]:
    from infotorch import fairness

    name = {"dCov": "distance_covariance_penalty", "JdCov": "jdcov_penalty", "CCdCov": "ccdcov_penalty"}[penalty]
    return partial(_run, getattr(fairness, name), f, attributes, backward)


def _run(call: Penalty, f: Tensor, attributes: Sequence[Tensor], backward: bool) -> Results:
    leaf = f.detach().requires_grad_(backward)
    value = call(leaf, attributes)
    if not backward:
        return {"value": value.detach()}
    (grad,) = torch.autograd.grad(value, leaf)
    return {"value": value.detach(), "grad": grad}


def _dcor(f: Tensor, attributes: Sequence[Tensor], *, backward: bool, small: bool) -> Subject:
    """The unbiased statistic of dcor: of two columns by sorting, else of all pairs."""
    version = version_of("dcor")
    if version is None:
        return Subject(DCOR, "-", None, "not installed")
    columns = _columns(attributes)
    line = columns.shape[1] == 1
    if backward or f.device.type != "cpu" or not (line or small):
        at_hand = "not on this device" if f.device.type != "cpu" else "left out: n x n matrices"
        why = "no gradient" if backward else at_hand
        return Subject(DCOR, version, None, why)
    x, y = f.numpy(), columns.numpy()

    def run() -> Results:
        import dcor

        method = dcor.DistanceCovarianceMethod.MERGESORT if line else dcor.DistanceCovarianceMethod.NAIVE
        value = dcor.u_distance_covariance_sqr(x, y[:, 0] if line else y, method=method)
        return {"value": torch.as_tensor(float(value), dtype=torch.float64)}

    return Subject(DCOR, version, run)


def _columns(attributes: Sequence[Tensor]) -> Tensor:
    """Points at the attributes' distances: categories are one-hot over the root of 2."""
    parts = [
        s.unsqueeze(1) if s.is_floating_point() else torch.nn.functional.one_hot(s).double() / 2**0.5
        for s in attributes
    ]
    return torch.cat(parts, 1)


def _reference(penalty: str, f: Tensor, attributes: Sequence[Tensor], backward: bool, small: bool) -> Results:
    """Dense matrices where they fit; beyond that, where nobody else can, ours on shuffled rows."""
    if small:
        return _run(_dense_of(penalty), f, attributes, backward)
    order = torch.randperm(len(f), device=f.device)
    found = _ours(penalty, f[order], [s[order] for s in attributes], backward)()
    if "grad" in found:
        found["grad"] = torch.empty_like(f).index_copy_(0, order, found["grad"])
    return found


def _centered(a: Tensor) -> Tensor:
    n = len(a)
    rows = a.sum(1)
    a = a - (rows.unsqueeze(1) + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return a - torch.diag(a.diagonal())


def _dense_of(penalty: str) -> Penalty:
    def call(f: Tensor, attributes: Sequence[Tensor]) -> Tensor:
        n = len(f)
        of_f = _centered((f.unsqueeze(1) - f).abs())
        apart = [
            (s.unsqueeze(1) - s).abs() if s.is_floating_point() else (s.unsqueeze(1) != s).double() for s in attributes
        ]
        if penalty == "dCov":
            total = sum((of_f * _centered(b)).sum() for b in apart)
        elif penalty == "CCdCov":
            total = (of_f * _centered(torch.stack([b.square() for b in apart]).sum(0).sqrt())).sum()
        else:
            product = -of_f
            for b in apart:
                product = product * (1 - _centered(b))
            total = product.sum()
        return torch.as_tensor(total) / (n * (n - 3))

    return call
