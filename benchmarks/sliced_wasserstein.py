"""Sliced Wasserstein distance of two samples, of equal and unequal sizes and weights, with and without gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

POT_TORCH, POT_NUMPY = "ot.sliced_wasserstein_distance (torch)", "ot.sliced_wasserstein_distance (numpy)"
SORT = "torch, all directions at once"


@dataclass(frozen=True)
class Shape:
    """Points of both samples, dimension, directions, type, and whether the points have weights."""

    n: int
    m: int
    d: int
    directions: int
    dtype: torch.dtype = torch.float32
    weighted: bool = False

    @property
    def label(self) -> str:
        kind = "weighted" if self.weighted else "equal" if self.n == self.m else "unequal"
        return (
            f"{kind}/{{mode}}/{self.n}, {self.m}x{self.d}, {self.directions} {str(self.dtype).removeprefix('torch.')}"
        )


# The first is frozen.
SHAPES = (
    Shape(10_000, 10_000, 64, 100),
    Shape(10_000, 10_000, 64, 100, torch.float64),
    Shape(1_000, 1_000, 64, 100),
    Shape(10_000, 7_000, 64, 100),
    Shape(10_000, 10_000, 64, 100, torch.float32, True),
    Shape(10_000, 10_000, 64, 500),
)
QUICK_SHAPES = (Shape(500, 500, 8, 20), Shape(500, 300, 8, 20), Shape(500, 500, 8, 20, torch.float32, True))


@register("sliced_wasserstein", "sliced Wasserstein distance of order 2")
def cases(options: Options) -> list[Case]:
    """Both modes at every shape."""
    return [
        Case(shape.label.format(mode=mode), partial(_build, shape, mode != "forward", position == 0, options))
        for position, shape in enumerate(QUICK_SHAPES if options.quick else SHAPES)
        for mode in ("forward", "forward+backward")
    ]


def _build(shape: Shape, backward: bool, frozen: bool, options: Options) -> Built:
    generator = torch.Generator(options.device).manual_seed(options.seed)
    normal = partial(torch.randn, generator=generator, device=options.device, dtype=shape.dtype)
    x, y = normal(shape.n, shape.d), normal(shape.m, shape.d) + 0.5
    theta = torch.nn.functional.normalize(normal(shape.d, shape.directions), dim=0)
    weights: tuple[Tensor | None, Tensor | None] = (None, None)
    if shape.weighted:
        weights = normal(shape.n).softmax(0), normal(shape.m).softmax(0)
    run = partial(_run, x=x, y=y, weights=weights, theta=theta, backward=backward)
    pot = version_of("pot")
    subjects = [Subject(POT_TORCH, pot or "-", partial(run, _pot) if pot else None, "" if pot else "not installed")]
    if options.device == "cpu" and not backward:
        subjects.append(Subject(POT_NUMPY, pot or "-", partial(run, _pot_numpy) if pot else None))
    if shape.n == shape.m and not shape.weighted:
        subjects.append(Subject(SORT, version_of("torch") or "-", partial(run, _sort)))
    gates = [Gate(POT_TORCH, "ours_max_abs_error", at_most=1e-5)]
    if frozen and not options.quick and options.device == "cpu":
        gates.append(Gate(POT_TORCH, "time_ratio", at_least=4.0))
    a, b = (None if t is None else t.double() for t in weights)
    wide = {"x": x.double(), "y": y.double(), "theta": theta.double()}
    reference = partial(_run, _pot if shape.weighted or shape.n != shape.m else _sort, weights=(a, b), **wide)
    return Built(
        ours=Subject("sliced_wasserstein", version_of("infotorch") or "source tree", partial(run, _ours)),
        peers=subjects,
        reference=partial(reference, backward=backward),
        input_bytes=(x.numel() + y.numel() + theta.numel()) * x.element_size(),
        gates=gates,
    )


def _ours(x: Tensor, y: Tensor, weights: tuple[Tensor | None, Tensor | None], theta: Tensor) -> Tensor:
    from infotorch.core.transport import sliced_wasserstein

    return sliced_wasserstein(x, y, projections=theta, x_weights=weights[0], y_weights=weights[1])


def _pot(x: Tensor, y: Tensor, weights: tuple[Tensor | None, Tensor | None], theta: Tensor) -> Tensor:
    import ot

    found = ot.sliced_wasserstein_distance(x, y, *weights, projections=theta)
    assert isinstance(found, Tensor)
    return found


def _pot_numpy(x: Tensor, y: Tensor, weights: tuple[Tensor | None, Tensor | None], theta: Tensor) -> Tensor:
    import ot

    a, b = (None if t is None else t.numpy() for t in weights)
    return torch.as_tensor(ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), a, b, projections=theta.numpy()))


def _sort(x: Tensor, y: Tensor, weights: tuple[Tensor | None, Tensor | None], theta: Tensor) -> Tensor:
    u, v = (theta.T @ x.T).sort(-1).values, (theta.T @ y.T).sort(-1).values
    return (u - v).square().mean().sqrt()


def _run(
    call: Callable[..., Tensor],
    *,
    x: Tensor,
    y: Tensor,
    weights: tuple[Tensor | None, Tensor | None],
    theta: Tensor,
    backward: bool,
) -> Results:
    if not backward:
        with torch.no_grad():
            return {"value": call(x, y, weights, theta)}
    leaves = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = call(*leaves, weights, theta)
    grads = torch.autograd.grad(value, leaves)
    return {"value": value.detach(), "grad_x": grads[0], "grad_y": grads[1]}
