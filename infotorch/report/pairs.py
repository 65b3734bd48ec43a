r"""What two columns tell about each other: the numbers of one pair.

================================ ============================================== ==================================
columns                          mutual information                             p-value, by permutations
================================ ============================================== ==================================
two categories; any two with at  contingency table adjusted for chance          plug-in mutual information
least 5 rows a cell              (:mod:`infotorch.core.chance`), all rows       (G-test), all rows
any other two                    :mod:`infotorch.core.mixed`: Kraskov for       distance covariance, and a table
                                 numbers, Ross for a number and a category, a   of deciles over all rows where
                                 table for values that repeat                   there are more than 2,000
================================ ============================================== ==================================

Numbers are replaced by their normal scores: no change of unit and no other increasing map of a column changes anything.

The strength of a pair is :math:`\sqrt{(1 - e^{-2I}) / (1 - e^{-2H})}` with ``H`` the smaller entropy of the values of
the two columns: 0 under independence, 1 where one column determines the other, and the absolute correlation of normal
variables, whose H is large (for these it is Linfoot's informational coefficient of correlation, 1957).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infotorch.core.chance import adjusted_mutual_information
from infotorch.core.dependence import independence_test, u_distance_correlation_sqr
from infotorch.core.discrete import plugin_entropy
from infotorch.core.gaussian import normal_scores
from infotorch.core.mixed import atoms, beyond_atoms
from infotorch.estimators._spread import half_sample_error, interval_of
from infotorch.estimators.columns import Column

PER_CELL = 5  # rows a cell from which a table of numbers is trusted
LEAST = 10  # complete rows below which nothing is estimated
FEW = 100  # and below which a warning is given
TEST_ROWS = 2000  # for distance covariance under permutations
BINS = 10
# The figures on strengths: with fewer neighbors weak dependence drowns in noise, with more of them strong dependence
# between few rows is lost. Over 13 kinds of pairs the mean error of the strength was least with 3 to 5 neighbors of 100
# rows and with 10 of 300; from there on 10 did about as well as more.
NEIGHBORS, LEAST_NEIGHBORS, ROWS_PER_NEIGHBOR = 10, 3, 30
CEILING = 0.7  # of the most that neighbors can show, log(n / k), above which they show too little
THIN = 3  # rows of a category that tell little of it


@dataclass(frozen=True)
class Options:
    """How pairs are measured.

    Attributes:
        k: Neighbors; None: 10, or a thirtieth of the rows where that is less, but 3 at least.
        max_rows: Rows for nearest neighbors and distance correlation; of more a random subset is used.
        bootstrap: Half-samples for intervals, at least 2; 0 for no intervals.
        confidence: Of the intervals.
        permutations: For p-values; 0 for none.
        seed: Of everything random. A pair's numbers depend on this, its two columns and their names only.
    """

    k: int | None = None
    max_rows: int = 10_000
    bootstrap: int = 20
    confidence: float = 0.95
    permutations: int = 199
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """Two columns, and how dependent they are.

    Attributes:
        x: Name of a column.
        y: Name of another.
        n: Rows in which both are present.
        n_used: Rows that the estimate used.
        estimator: ``"table"``, ``"kraskov"``, ``"ross"``, ``"mixed"``; nothing where the pair cannot be measured.
        mutual_information: Nats, not clipped: small negative values mean "near 0".
        interval: Of the mutual information.
        strength: 0 to 1, comparable between pairs of any kind.
        strength_interval: Likewise.
        share_x: Share of the entropy of x that y removes, for categories and tables.
        share_y: Share of the entropy of y that x removes, likewise.
        distance_correlation: Bias-corrected, of normal scores and categories; 0 to 1.
        p_value: Of independence.
        p_adjusted: For the number of pairs.
        warnings: Reasons for care, in words.
    """

    x: str
    y: str
    n: int
    n_used: int = 0
    estimator: str = ""
    mutual_information: float | None = None
    interval: tuple[float, float] | None = None
    strength: float | None = None
    strength_interval: tuple[float, float] | None = None
    share_x: float | None = None
    share_y: float | None = None
    distance_correlation: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether there is an estimate."""
        return self.mutual_information is not None


def strength(information: float, most: float) -> float:
    """0 to 1: mutual information on the scale of an absolute correlation, ``most`` being what it could be.

    >>> round(strength(-0.5 * math.log(1 - 0.6**2), math.inf), 6), strength(math.log(2), math.log(2))
    (0.6, 1.0)
    """
    reachable = -math.expm1(-2 * most)
    return min(1.0, math.sqrt(-math.expm1(-2 * max(information, 0.0)) / reachable)) if reachable > 0 else 0.0


def measure(x: Column, y: Column, options: Options) -> Pair:
    """All numbers of a pair, but those that need the other pairs.

    Args:
        x: A column.
        y: Another, of the same length.
        options: How.
    """
    data = _Data(x, y, options)
    pair = Pair(x.name, y.name, data.n)
    if data.reason:
        return replace(pair, warnings=(data.reason,))
    information, entropies = data.information(), data.entropies()
    most = min(entropies)
    interval = data.interval(information) if options.bootstrap else None
    shares = [
        min(1.0, max(0.0, information / h)) if data.table or not column.numeric else None
        for column, h in zip((x, y), entropies, strict=True)
    ]
    pair = replace(
        pair,
        n_used=data.n_used,
        estimator=data.estimator,
        mutual_information=information,
        strength=strength(information, most),
        share_x=shares[0],
        share_y=shares[1],
        interval=interval,
        strength_interval=None if interval is None else (strength(interval[0], most), strength(interval[1], most)),
        distance_correlation=data.distance_correlation(),
        p_value=data.p_value(options.permutations) if options.permutations else None,
    )
    return replace(pair, warnings=tuple(data.warnings(pair)))


def p_value(x: Column, y: Column, options: Options, permutations: int) -> float:
    """The p-value alone of a pair that can be measured."""
    return _Data(x, y, options).p_value(permutations)


class _Data:
    """The rows in which both columns are present, as the estimators want them."""

    def __init__(self, x: Column, y: Column, options: Options) -> None:
        self.x, self.y, self.options = x, y, options
        name = repr((options.seed, x.name, y.name)).encode()
        self.seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
        both = (~(x.missing | y.missing)).nonzero().squeeze(1)
        self.n = len(both)
        self.codes = [_renumbered(column.codes[both]) for column in (x, y)]
        levels = [int(codes.max()) + 1 if self.n else 0 for codes in self.codes]
        self.cells = levels[0] * levels[1]
        self.table = not (x.numeric or y.numeric) or self.n >= PER_CELL * self.cells
        # In random order, so that its first rows are a random choice, too.
        self.chosen = torch.randperm(self.n, generator=self.generator())[: options.max_rows]
        self.n_used = self.n if self.table else len(self.chosen)
        self.k = options.k or max(LEAST_NEIGHBORS, min(NEIGHBORS, self.n_used // ROWS_PER_NEIGHBOR))
        self.reason = self._reason(levels)
        if not self.reason:
            self.values = [column.values[both] if column.numeric else column.codes[both] for column in (x, y)]
            self.sides = [
                normal_scores(v[self.chosen]).squeeze(1) if v.is_floating_point() else v[self.chosen]
                for v in self.values
            ]
            self.atoms = self.codes if self.table else [atoms(v) for v in self.values]
            self.estimator = self._estimator()

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _reason(self, levels: list[int]) -> str:
        """Why the pair cannot be measured."""
        if self.n < max(LEAST, self.k + 1):
            return f"not measured: only {self.n} rows have both"
        for column, other, codes, count in zip((self.x, self.y), (self.y, self.x), self.codes, levels, strict=True):
            if count == 1:
                return f"not measured: {column.name} has a single value where {other.name} is present"
            if not self.table and not bool((codes[self.chosen] != codes[self.chosen[0]]).any()):
                return f"not measured: {column.name} has a single value in the {self.n_used} rows drawn"
        return ""

    def _estimator(self) -> str:
        """By what the pair is measured."""
        if self.table:
            return "table"
        with_atoms = [bool(a.any()) for a in self.atoms]
        only_atoms = [bool(a.all()) for a in self.atoms]
        if not any(with_atoms):
            return "kraskov"
        one_sided = (only_atoms[0] and not with_atoms[1]) or (only_atoms[1] and not with_atoms[0])
        return "ross" if one_sided else "mixed"

    def information(self) -> float:
        """The estimate in nats."""
        between = adjusted_mutual_information(*self.atoms)
        if self.table:
            return float(between)
        return float(between) + self._beyond(torch.arange(len(self.chosen)))

    def _beyond(self, rows: Tensor) -> float:
        """What nearest neighbors add, from some of the rows that were drawn."""
        x, y = (side[rows] for side in self.sides)
        a, b = (codes[self.chosen[rows]] for codes in self.atoms)
        return float(beyond_atoms(x, y, a, b, k=self.k, generator=self.generator()))

    def interval(self, information: float) -> tuple[float, float] | None:
        """Of the estimate, by half-samples of the rows that it used; None where they are too few."""
        resamples, n = self.options.bootstrap, self.n_used
        if n // 2 < max(LEAST, self.k + 2):
            return None

        def value_of(rows: Tensor) -> float:
            if self.table:
                return float(adjusted_mutual_information(*(codes[rows] for codes in self.codes)))
            between = adjusted_mutual_information(*(codes[self.chosen[rows]] for codes in self.atoms))
            return float(between) + self._beyond(rows)

        error = half_sample_error(value_of, n, resamples=resamples, generator=self.generator())
        assert error is not None
        return interval_of(information, error, self.options.confidence, resamples - 1)

    def entropies(self) -> list[float]:
        """Plug-in entropies of the values of both columns in the rows that were used."""
        used = [codes if self.table else codes[self.chosen] for codes in self.codes]
        return [float(plugin_entropy(torch.bincount(codes))) for codes in used]

    def distance_correlation(self) -> float:
        """Bias-corrected, so that it is about 0 under independence."""
        return max(0.0, float(u_distance_correlation_sqr(*self.sides))) ** 0.5

    def p_value(self, permutations: int) -> float:
        """Valid at any number of rows; twice the smaller where two tests were made."""
        generator = self.generator()
        if self.table:
            return _table_test(self.codes, permutations, generator)
        x, y = (side[:TEST_ROWS] for side in self.sides)
        found = independence_test(x, y, permutations=permutations, generator=generator).p_value
        if self.n <= TEST_ROWS:
            return found
        binned = [_deciles(v) if v.is_floating_point() else v for v in self.values]
        return min(1.0, 2 * min(found, _table_test(binned, permutations, generator)))

    def warnings(self, pair: Pair) -> list[str]:
        """Reasons for care, in words."""
        found = []
        if self.n < FEW:
            found.append(f"only {self.n} rows have both")
        if self.table and self.n < PER_CELL * self.cells:
            found.append(f"{self.cells} combinations of levels for {self.n} rows: the correction for chance is large")
        if not self.table and not (self.x.numeric and self.y.numeric):
            labels = next(s for s in self.sides if not s.is_floating_point())
            thin = float((torch.bincount(labels)[labels] <= THIN).double().mean())
            if thin > 0.05:
                found.append(f"{thin:.0%} of the rows are in categories of {THIN} rows or fewer")
        for share, told, by in ((pair.share_x, self.x, self.y), (pair.share_y, self.y, self.x)):
            if share is not None and share > 0.999:
                found.append(f"{by.name} determines {told.name}")
        assert pair.mutual_information is not None
        if not self.table and pair.mutual_information > CEILING * math.log(self.n_used / self.k):
            found.append(f"near the most that {self.n_used} rows can show: take it as a lower bound")
        return found


def _table_test(codes: list[Tensor], permutations: int, generator: torch.Generator) -> float:
    x, y = codes
    test = independence_test(x, y, measure="mutual_information", permutations=permutations, generator=generator)
    return test.p_value


def _renumbered(codes: Tensor) -> Tensor:
    """Codes without gaps."""
    return torch.unique(codes, return_inverse=True)[1] if len(codes) else codes


def _deciles(x: Tensor) -> Tensor:
    """Bins of about equal size that part no equal values."""
    return (BINS * torch.special.ndtr(normal_scores(x).squeeze(1))).long()
