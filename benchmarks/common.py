"""What a benchmark is made of: cases, competitors, rows, gates, and the registry.

A benchmark is a file in this directory with one registered function::

    @register("name", "what it measures")
    def cases(options: Options) -> list[Case]: ...

A case is built only when its turn comes. ``build`` makes the inputs and returns a :class:`Built`: our call, the
peers' calls on the same inputs, and what the right answer is.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

Results = dict[str, Tensor]

KEYS = (
    "benchmark",
    "case",
    "ours",
    "peer",
    "peer_version",
    "time_ratio",
    "memory_ratio",
    "max_abs_error",
)


@dataclass(frozen=True)
class Options:
    """How to run: small sizes or full ones, and where."""

    quick: bool = False
    device: str = "cpu"
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """One competitor of a case.

    Attributes:
        name: What is called, as its users know it.
        version: Version of the package it comes from.
        run: Do the work once on the case's inputs and return the named results. None if it cannot be had here;
            ``note`` then says why.
        note: A remark for the table, such as that it computes less than we do.
        floor: Whether this is no competitor but a lower bound (a bare matrix product, say).
    """

    name: str
    version: str
    run: Callable[[], Results] | None
    note: str = ""
    floor: bool = False


@dataclass(frozen=True)
class Gate:
    """A bound that one field of one peer's row must keep."""

    peer: str
    quantity: str
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.quantity} >= {self.at_least:.4g}"
        return f"{self.quantity} <= {self.at_most:.4g}"

    def check(self, row: dict[str, Any]) -> dict[str, Any]:
        """The gate as it is written into the row; ``passed`` is None where nothing was measured."""
        value = row.get(self.quantity)
        if value is None:
            passed = False if self.quantity.endswith("_error") else None
        elif self.at_least is not None:
            passed = value >= self.at_least
        else:
            passed = value <= (self.at_most or 0.0)
        return {"gate": str(self), "passed": passed}


@dataclass(frozen=True)
class Built:
    """A case with its inputs in memory.

    Attributes:
        ours: Our call.
        peers: The other calls.
        reference: The results in float64. Names that start with ``grad`` are compared relative to their
            largest entry, all others in absolute terms.
        input_bytes: Size of the inputs: the unit in which memory is reported.
        gates: Bounds to be kept.
        timed: False for cases about values only.
        rounds: The least number of them. 1 is for calls of a minute: each runs once, for its values and its time, and
            memory is not measured.
    """

    ours: Subject
    peers: Sequence[Subject]
    reference: Callable[[], Results]
    input_bytes: int
    gates: Sequence[Gate] = ()
    timed: bool = True
    rounds: int = 5


@dataclass(frozen=True)
class Case:
    """A named set of inputs, built on demand."""

    name: str
    build: Callable[[], Built]


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark."""

    name: str
    summary: str
    cases: Callable[[Options], list[Case]] = field(repr=False)


REGISTRY: dict[str, Benchmark] = {}


def register(name: str, summary: str) -> Callable[[Callable[[Options], list[Case]]], Callable[[Options], list[Case]]]:
    """Decorator that puts a benchmark into the registry."""

    def put(cases: Callable[[Options], list[Case]]) -> Callable[[Options], list[Case]]:
        if name in REGISTRY and REGISTRY[name].cases.__module__ != cases.__module__:
            raise ValueError(f"name: benchmark {name!r} is already registered")
        REGISTRY[name] = Benchmark(name, summary, cases)
        return cases

    return put


def load_all() -> dict[str, Benchmark]:
    """Import every file of this directory, so that each registers what it holds."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "run":
            importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(REGISTRY.items()))


def errors(results: Results, reference: Results) -> dict[str, float | None]:
    """Largest deviation of values (absolute) and of gradients (relative to the largest); None where not finite.

    A result that a competitor does not return is not counted against it.
    """
    worst: dict[str, float | None] = {}
    for name, value in results.items():
        truth = reference[name].double()
        deviation = (value.detach().double() - truth).abs().max()
        kind = "max_abs_error"
        if name.startswith("grad"):
            kind = "grad_rel_error"
            deviation = deviation / truth.abs().max().clamp(min=1e-300)
        previous = worst.get(kind, 0.0)
        number = float(deviation)
        worst[kind] = None if previous is None or not math.isfinite(number) else max(previous, number)
    return worst
