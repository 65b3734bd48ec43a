"""Random draws of joint distributions with known mutual information: the tasks that a learned estimator learns from.

Reference: "MIST: Mutual information (estimation) via supervised training", 2025, arXiv:2511.18945. Ranges and lists of
families are those of the authors' code; dimensions may differ between the sides here, and every task has random
numbers of its own (the authors' code reseeds with fewer than 10,000 seeds).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.distributions import transforms as t
from infotorch.distributions.joint import Joint, Map
from infotorch.distributions.normal import Normal, Student, dense_covariance, latent_covariance
from infotorch.distributions.uniform import AdditiveUniform

TRAINING_FAMILIES = (
    "normal-dense",
    "normal-dense-half_cube",
    "normal-dense-asinh",
    "normal-sparse",
    "normal-sparse-wiggly",
    "normal-latent",
    "normal-latent-wiggly",
    "normal-pairs",
    "student-dense",
    "student-dense-wiggly",
    "student-sparse",
    "student-sparse-half_cube",
    "student-sparse-asinh",
    "student-pairs-half_cube",
    "student-pairs-asinh",
    "additive-wiggly",
)
"""What the published model was trained on."""

SEEN_FAMILIES = (
    "normal-dense",
    "normal-dense-half_cube",
    "normal-latent-wiggly",
    "student-dense",
    "student-sparse",
    "student-sparse-asinh",
)
"""Those among them that the published test set takes."""

UNSEEN_FAMILIES = (
    "normal-dense-wiggly",
    "normal-sparse-half_cube",
    "normal-sparse-asinh",
    "student-sparse-wiggly",
    "student-dense-half_cube",
    "additive",
    "additive-half_cube",
)
"""Combinations that the published training set leaves out, and its test set takes."""

STRUCTURES = ("dense", "sparse", "latent", "pairs")
TRANSFORMS: dict[str, tuple[Map, Map]] = {
    "half_cube": (t.half_cube, t.half_cube),
    "asinh": (torch.asinh, torch.asinh),
    "wiggly": (t.wiggly_x, t.wiggly_y),
}


@dataclass(frozen=True)
class Task:
    """A sample and the truth about it.

    Attributes:
        family: Name of its family.
        x: Shape ``(n, dx)``, float64.
        y: Shape ``(n, dy)``.
        information: True mutual information, nats.
    """

    family: str
    x: Tensor
    y: Tensor
    information: float


@dataclass(frozen=True)
class MetaDistribution:
    """A distribution over joint distributions.

    Attributes:
        families: Names, drawn uniformly: ``normal`` or ``student``, a structure (``dense``, ``sparse``, ``latent``,
            ``pairs``) and perhaps a transform (``half_cube``, ``asinh``, ``wiggly``), joined by hyphens; or
            ``additive`` with or without a transform.
        columns: Fewest and most columns of a side.
        equal: Give both sides equally many columns.
        shuffled: Put the columns of each side in random order. Without, pairs that belong together stand in equal
            places, which a network may learn to rely on.

    Raises:
        ValueError: An unknown family, no columns.

    >>> task = MetaDistribution(columns=(2, 5)).draw(100, torch.Generator().manual_seed(0))
    >>> task.family, tuple(task.x.shape), round(task.information, 3)
    ('student-sparse-asinh', (100, 5), 0.703)
    """

    families: tuple[str, ...] = TRAINING_FAMILIES
    columns: tuple[int, int] = (2, 32)
    equal: bool = True
    shuffled: bool = False

    def __post_init__(self) -> None:
        low, high = self.columns
        if not 1 <= low <= high:
            raise ValueError(f"columns: expected 1 <= fewest <= most, got {self.columns}")
        check_range("len(families)", len(self.families), 1)
        for family in self.families:
            _parse(family)

    def joint(self, family: str, generator: torch.Generator) -> Joint:
        """A joint distribution of a family, with random dimensions and parameters."""
        base, structure, transform = _parse(family)
        low, high = self.columns
        dx, dy = (_integer(low, high, generator) for _ in range(2))
        if self.equal or base == "additive":
            dy = dx
        if base == "additive":
            joint: Joint = AdditiveUniform([_uniform(0.1, 2.0, generator) for _ in range(dx)])
        else:
            matrix = _correlation(structure, dx, dy, generator)
            joint = Normal(matrix, dx) if base == "normal" else Student(matrix, dx, _uniform(1.0, 10.0, generator))
        return joint.transform(*TRANSFORMS[transform]) if transform else joint

    def draw(self, n: int, generator: torch.Generator) -> Task:
        """A random family, a distribution of it, and ``n`` pairs."""
        family = self.families[_integer(0, len(self.families) - 1, generator)]
        joint = self.joint(family, generator)
        x, y = joint.sample(n, generator)
        if self.shuffled:
            x, y = (v[:, torch.randperm(v.shape[1], generator=generator)] for v in (x, y))
        return Task(family, x, y, joint.mutual_information())

    def of(self, *families: str) -> MetaDistribution:
        """The same with other families."""
        return replace(self, families=families)


def _parse(family: str) -> tuple[str, str, str]:
    """Base, structure and transform; the last two may be empty."""
    base, *rest = family.split("-")
    check_choice("family", base, ("normal", "student", "additive"))
    structure = "" if base == "additive" else check_choice("structure", rest.pop(0) if rest else "", STRUCTURES)
    transform = check_choice("transform", rest.pop(0), TRANSFORMS) if rest else ""
    if rest:
        raise ValueError(f"families: expected base-structure-transform, got {family!r}")
    return base, structure, transform


def _correlation(structure: str, dx: int, dy: int, generator: torch.Generator) -> Tensor:
    uniform = partial(_uniform, generator=generator)
    if structure == "dense":
        return dense_covariance(dx + dy, uniform(0.0, 0.5))
    pairs = min(2, dx, dy) if structure == "pairs" else _integer(1, min(dx, dy), generator)
    if structure != "latent":
        return latent_covariance(dx, dy, pairs=pairs, strength=uniform(0.1, 5.0))
    options = {"common": uniform(0.0, 1.0), "strength": uniform(0.1, 3.0), "within": uniform(0.0, 1.5)}
    return latent_covariance(dx, dy, pairs=pairs, noise=uniform(0.1, 5.0), **options)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
