"""Every estimator that fits the data, side by side: where they agree, where not, and which to quote."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infotorch.core._checks import check_choice
from infotorch.core.mixed import atoms
from infotorch.estimators._samples import Sample, as_sample
from infotorch.estimators._variables import as_codes
from infotorch.estimators.base import PairEstimator, paired_samples, recorded
from infotorch.estimators.columns import encode_column
from infotorch.estimators.dependence import HSIC, DistanceCorrelation
from infotorch.estimators.discrete import DiscreteMI
from infotorch.estimators.gaussian import CopulaMI, GaussianMI
from infotorch.estimators.mist import MIST
from infotorch.estimators.neighbors import KSG, AtomicMI, MixedKSG, RossMI

TYPES = ("continuous", "discrete")
_DENSE = 5.0  # points per cell of a table from which the corrections agree
_TIED = 0.02  # share of repeated values in a column from which nearest neighbors are misled
_BIAS = "leave neighbors too far apart"


@dataclass(frozen=True)
class Estimated:
    """One estimator's result.

    Attributes:
        name: What it goes by in the table.
        quantity: What is estimated; only values of ``"mutual_information"`` are compared.
        value: The estimate; None where the estimator failed.
        std_error: Standard error, or None.
        interval: Confidence interval, or None.
        p_value: Of independence, or None.
        seconds: Time of the fit.
        warnings: Their texts.
        failure: Why there is no estimate; empty where there is.
    """

    name: str
    quantity: str
    value: float | None = None
    std_error: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Comparison:
    """Result of :func:`estimate_all`.

    Attributes:
        results: One per estimator.
        x_type: ``"continuous"`` or ``"discrete"``.
        y_type: Likewise.
        n: Number of points.
        disagreements: Pairs of names whose intervals do not meet.
        recommended: Name of the result to quote; None where no estimator can be trusted.
        reason: Why.
        notes: What was decided about the types.
    """

    results: tuple[Estimated, ...]
    x_type: str
    y_type: str
    n: int
    disagreements: tuple[tuple[str, str], ...]
    recommended: str | None
    reason: str
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Estimated:
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"{name!r}: expected one of {', '.join(r.name for r in self.results)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "n": self.n,
            "x_type": self.x_type,
            "y_type": self.y_type,
            "recommended": self.recommended,
            "reason": self.reason,
            "disagreements": [list(pair) for pair in self.disagreements],
            "notes": list(self.notes),
            "results": [
                vars(r) | {"interval": list(r.interval) if r.interval else None, "warnings": list(r.warnings)}
                for r in self.results
            ],
        }

    def table(self) -> str:
        """The results as text: a line each, then disagreements, the recommendation and all warnings."""
        rows = [("estimator", "estimate", "interval", "p", "seconds", "")]
        for r in self.results:
            value = "failed" if r.value is None else f"{r.value:.3f}"
            interval = "" if r.interval is None else f"{r.interval[0]:.3f} .. {r.interval[1]:.3f}"
            p_value = "" if r.p_value is None else f"{r.p_value:.3g}"
            marks = "" if r.quantity == "mutual_information" else "not in nats"
            marks = ", ".join(m for m in (marks, f"{len(r.warnings)} warnings" if r.warnings else "") if m)
            name = f"* {r.name}" if r.name == self.recommended else f"  {r.name}"
            rows.append((name, value, interval, p_value, f"{r.seconds:.2f}", marks))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"x {self.x_type}, y {self.y_type}, {self.n} points"]
        lines += [f"{a} and {b} disagree beyond their intervals" for a, b in self.disagreements]
        lines += [f"quote {self.recommended}: {self.reason}" if self.recommended else f"quote none: {self.reason}"]
        lines += list(self.notes)
        said: dict[str, list[str]] = {}
        for r in self.results:
            for text in (*r.warnings, r.failure):
                said.setdefault(text, []).append(r.name)
        lines += [f"{', '.join(names)}: {text}" for text, names in said.items() if text]
        return "\n".join(lines)


def estimate_all(
    x: Any,
    y: Any,
    *,
    x_type: str | None = None,
    y_type: str | None = None,
    estimators: Mapping[str, PairEstimator] | None = None,
    confidence: float | None = 0.95,
    permutations: int = 0,
    neural: bool = False,
    progress: bool = False,
    random_state: int | None = 0,
) -> Comparison:
    """Run all estimators that fit the types of x and y, and say where they disagree and which to quote.

    Types follow from the dtype: floats are continuous, integers and booleans discrete, text what its cells say
    (:func:`infotorch.estimators.encode_column`). Counts of values decide nothing: say ``x_type`` where the dtype is
    wrong.

    Args:
        x: Shape ``(n, d)`` or ``(n,)``.
        y: Likewise.
        x_type: ``"continuous"`` or ``"discrete"``, to overrule the dtype.
        y_type: Likewise.
        estimators: Run these, by name, in place of those that fit; each gets x and y as they are after typing.
        confidence: Of the intervals; None saves most of the time.
        permutations: For p-values.
        neural: Train neural bounds, too (continuous x and y; minutes).
        progress: Show a bar.
        random_state: Seed.

    Returns:
        The record; ``print(estimate_all(x, y).table())``. Warnings are kept in it and not given.

    Raises:
        TypeError: Text taken as continuous.
        ValueError: Different numbers of points, missing or non-finite values, unknown types. Where one estimator fails
            on data that others can use, its result says why.

    >>> from infotorch.distributions import bivariate_normal
    >>> found = estimate_all(*bivariate_normal(0.75).sample(500), confidence=None)
    >>> found.recommended, f"{found['CopulaMI'].value:.2f}"
    ('KSG', '0.42')
    """
    notes: list[str] = []
    typed = {name: _typed(name, values, kind, notes) for name, values, kind in (("x", x, x_type), ("y", y, y_type))}
    samples = paired_samples(**typed)
    kinds = {name: "discrete" if sample.discrete else "continuous" for name, sample in samples.items()}
    chosen = dict(estimators or _fitting(samples, confidence, permutations, random_state, neural))
    names = list(chosen)
    if progress:
        from tqdm import tqdm

        names = tqdm(names, desc="estimators")
    results = tuple(_run(name, chosen[name], typed["x"], typed["y"]) for name in names)
    disagreements = tuple(
        (a.name, b.name)
        for a, b in itertools.combinations([r for r in results if r.quantity == "mutual_information"], 2)
        if a.interval and b.interval and (a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0])
    )
    recommended, reason = _recommend(results, samples)
    return Comparison(
        results, kinds["x"], kinds["y"], len(samples["x"]), disagreements, recommended, reason, tuple(notes)
    )


def _typed(name: str, x: Any, kind: str | None, notes: list[str]) -> Any:
    """Floats or integers, whichever the variable is."""
    if kind is not None:
        check_choice(f"{name}_type", kind, TYPES)
    sample = as_sample(name, x)
    if sample.nominal and kind != "discrete" and sample.n_features == 1:
        column = encode_column(name, [row[0] if isinstance(row, list | tuple) else row for row in _cells(x)])
        if column.n_missing:
            raise ValueError(f"{name}: expected no missing values, got {column.n_missing}")
        if column.numeric:
            values = column.values if column.kind != "integer" else column.values.long()
            notes.append(f"{name}: text read as {column.kind} numbers")
            sample = Sample(values.unsqueeze(1), column.kind == "integer", sample.tensor)
    if kind == "continuous" and sample.nominal:
        raise TypeError(f"{name}_type: expected discrete for text, got continuous")
    if kind == "continuous":
        sample = Sample(sample.values.double(), False, sample.tensor)
    elif kind == "discrete" and not sample.discrete:
        with recorded():
            codes = as_codes(name, sample)
        sample = Sample(codes.unsqueeze(1), True, sample.tensor)
    # Back in the kind it came: estimators give arrays back in that of their input.
    return sample.values if sample.tensor else sample.values.numpy()


def _cells(x: Any) -> list[Any]:
    return x.tolist() if hasattr(x, "tolist") else list(x)


class _Swapped:
    """An estimator of continuous x and discrete y, for data the other way round."""

    def __init__(self, estimator: PairEstimator) -> None:
        self.estimator = estimator

    def fit(self, x: Any, y: Any) -> PairEstimator:
        return self.estimator.fit(y, x)


def _fitting(
    samples: Mapping[str, Sample], confidence: float | None, permutations: int, random_state: int | None, neural: bool
) -> dict[str, Any]:
    """Estimators for the types, by name."""
    o: dict[str, Any] = {"confidence": confidence, "permutations": permutations, "random_state": random_state}
    discrete = [sample.discrete for sample in samples.values()]
    related = {"DistanceCorrelation": DistanceCorrelation(**o), "HSIC": HSIC(**o)}
    if all(discrete):
        return {
            f"DiscreteMI {name}": DiscreteMI(name, **o)
            for name in ("plugin", "miller_madow", "grassberger", "chao_shen", "shrinkage", "nsb", "adjusted")
        }
    if any(discrete):
        ross = RossMI(**o)
        return {"RossMI": _Swapped(ross) if discrete[0] else ross, "MixedKSG": MixedKSG(**o)} | related
    found: dict[str, Any] = {
        "KSG": KSG(**o),
        "KSG variant 2": KSG(variant=2, **o),
        "KSG normal scores": KSG(standardize="normal_scores", **o),
        "MixedKSG": MixedKSG(**o),
        "GaussianMI": GaussianMI(**o),
        "CopulaMI": CopulaMI(**o),
    }
    if max(_tied(s) for s in samples.values()) > _TIED:
        found["KSG with noise"] = KSG(noise=1e-10, **o)
        if all(s.n_features == 1 for s in samples.values()):
            found["AtomicMI"] = AtomicMI(**o)
    trained = MIST(confidence=confidence, random_state=random_state)
    if all(s.n_features <= trained.training.columns[1] for s in samples.values()):
        found["MIST"] = trained
    if neural:
        from infotorch.estimators.neural import NWJ, SMILE, InfoNCE

        options: dict[str, Any] = {"random_state": random_state} | ({"confidence": confidence} if confidence else {})
        found |= {kind.__name__: kind(**options) for kind in (InfoNCE, NWJ, SMILE)}
    return found | related


def _tied(sample: Sample) -> float:
    """Share of the points that have a value of theirs, in any column that varies, in common with another point."""
    shares = [0.0]
    for column in sample.values.T:
        values, counts = column.unique(return_counts=True)
        if len(values) > 1:
            shares.append(float(counts[counts > 1].sum()) / len(column))
    return max(shares)


def _run(name: str, estimator: Any, x: Any, y: Any) -> Estimated:
    start = time.perf_counter()
    quantity = getattr(estimator, "quantity", "mutual_information")
    try:
        with recorded():
            found = estimator.fit(x, y)
    except ValueError as error:
        return Estimated(name, quantity, seconds=time.perf_counter() - start, failure=str(error))
    return Estimated(
        name,
        quantity,
        found.value_,
        found.std_error_,
        found.interval_,
        getattr(found, "p_value_", None),
        time.perf_counter() - start,
        found.warnings_,
    )


def _recommend(results: tuple[Estimated, ...], samples: Mapping[str, Sample]) -> tuple[str | None, str]:
    """Name and reason."""
    by_name = {r.name: r for r in results if r.value is not None and r.quantity == "mutual_information"}
    if not by_name:
        return None, "no estimator of mutual information succeeded"
    if "DiscreteMI grassberger" in by_name:
        x, y = (len(s.values.unique(dim=0)) for s in samples.values())
        per_cell = len(samples["x"]) / (x * y)
        if per_cell >= _DENSE:
            return "DiscreteMI grassberger", f"{per_cell:.3g} points a cell of the table are enough for its correction"
        return (
            "DiscreteMI adjusted",
            f"{per_cell:.2g} points a cell of the table: chance has to be taken off",
        )
    if "RossMI" in by_name:
        return "RossMI", "made for numbers and categories; MixedKSG is the second opinion"
    if "KSG" not in by_name or "CopulaMI" not in by_name:
        name = next(iter(by_name))
        return name, "the first of those that were asked for"
    if max(tied := [_tied(s) for s in samples.values()]) > _TIED:
        why = f"up to {max(tied):.0%} of a column's values repeat"
        if "AtomicMI" in by_name:
            return "AtomicMI", f"{why}, and it splits off those that do so often"
        if "KSG with noise" in by_name and not any(bool(atoms(c).any()) for s in samples.values() for c in s.values.T):
            return "KSG with noise", f"{why}, none of them often, as rounding leaves them"
        return (
            None,
            f"{why}; reduce x and y to one column each, for AtomicMI to tell rounding from values that stand out",
        )
    ksg, copula = by_name["KSG"], by_name["CopulaMI"]
    if any("heavy tails" in text for text in ksg.warnings) and "KSG normal scores" in by_name:
        ksg = by_name["KSG normal scores"]
    assert ksg.value is not None
    assert copula.value is not None
    if not any(_BIAS in text for text in ksg.warnings):
        tails = "columns have heavy tails, which normal scores take away; " if ksg.name != "KSG" else ""
        return ksg.name, f"{tails}it assumes no shape of the dependence, and on normal data of this size it is right"
    slack = 2 * ((ksg.std_error or 0.0) + (copula.std_error or 0.0))
    if copula.value > ksg.value + slack:
        return "CopulaMI", (
            "nearest neighbors fall short at this size (see the warning) and it finds more than they do; a lower "
            "bound, blind to all but a Gaussian copula"
        )
    return None, (
        "nearest neighbors fall short at this size, and the Gaussian estimates see no more; the truth may be larger "
        "than any of these (reduce the columns, bring more points, or try neural=True)"
    )
