"""How predictions differ between groups and intersections of groups, before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.dependence import group_js_divergence, u_ccdcor_sqr, u_distance_correlation_sqr
from infotorch.estimators._samples import as_sample
from infotorch.estimators.base import generator_of
from infotorch.fairness.attributes import encode_attributes
from infotorch.fairness.penalties import ccdcov_penalty, distance_covariance_penalty, jdcov_penalty

Metric = Callable[[Tensor, Tensor | None], float]


@dataclass(frozen=True)
class Group:
    """One group or intersection.

    Attributes:
        name: ``sex=f``, or ``sex=f, age < 30``.
        rows: How many.
        share: Of all rows, or of their weight.
        metrics: ``"prediction"``, its mean; with targets also ``"target"``; then ``"squared error"``, or for classes
            ``"selected"``, ``"accuracy"``, ``"true positives"`` and ``"false positives"`` (rates at the threshold;
            None where nobody could be).
    """

    name: str
    rows: int
    share: float
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class FairnessReport:
    """What :func:`fairness_report` finds.

    Attributes:
        groups: Of single attributes.
        intersections: Of all attributes together, those that occur.
        correlations: Unbiased squared distance correlation with every attribute.
        dependence: Unbiased penalties of the prediction with standard deviation 1: ``"marginal"``, ``"ccdcov"``, its
            excess over the former ``"remainder"``, ``"jdcov"``; and the squared distance correlation with all
            attributes as one vector, ``"joint correlation"``.
        js: Jensen-Shannon divergence between intersections, nats.
        js_by_chance: What predictions dealt out at random have: the bias of ``js`` at groups of these sizes.
        gap: Largest minus smallest mean prediction of intersections.
        ratio: Smallest over largest; None where one is not positive.
    """

    groups: tuple[Group, ...]
    intersections: tuple[Group, ...]
    correlations: dict[str, float]
    dependence: dict[str, float]
    js: float
    js_by_chance: float
    gap: float
    ratio: float | None

    @property
    def js_excess(self) -> float:
        """Divergence beyond chance, at least 0."""
        return max(0.0, self.js - self.js_by_chance)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = {key: [vars(group) for group in getattr(self, key)] for key in ("groups", "intersections")}
        return {**vars(self), **rows}

    def table(self, before: FairnessReport | None = None) -> str:
        """Text: a row per group; with ``before`` its numbers on the left of an arrow.

        Raises:
            ValueError: ``before`` is about other groups.
        """
        pairs = _pairs(self, before)
        keys = list(pairs[0][0].metrics)
        lines = [["group", "share", *keys]]
        for now, old in pairs:
            cells = [_change(now.metrics[key], None if old is None else old.metrics[key]) for key in keys]
            lines.append([now.name, f"{now.share:.3f}", *cells])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        for name, value in self._summary().items():
            text.append(f"{name}: {_change(value, None if before is None else before._summary()[name], 4)}")
        return "\n".join(text)

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path, before: FairnessReport | None = None) -> Path:
        """Draw the mean prediction (and target) of every group, with ``before`` beside it.

        Raises:
            ValueError: ``before`` is about other groups.
        """
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        pairs = _pairs(self, before)
        figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.28 * len(pairs)))
        series = {"prediction": ([now for now, _ in pairs], "#0072B2", "o")}
        if before is not None:
            series = {"before": ([old for _, old in pairs if old], "#E69F00", "o"), "after": series["prediction"]}
        for label, (rows, color, marker) in series.items():
            axes.plot(_values(rows, "prediction"), range(len(rows)), marker, color=color, label=label)
        if "target" in self.groups[0].metrics:
            targets = _values([now for now, _ in pairs], "target")
            axes.plot(targets, range(len(pairs)), "|", color="0.3", markersize=10, label="target")
        axes.axhline(len(self.groups) - 0.5, color="0.7", linewidth=0.8)
        axes.set_yticks(range(len(pairs)), [now.name for now, _ in pairs], fontsize=8)
        axes.invert_yaxis()
        axes.grid(alpha=0.25)
        axes.set_xlabel("mean")
        axes.set_title("groups, and below the line their intersections", loc="left", fontsize=10)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path, bbox_inches="tight", dpi=120)
        plt.close(figure)
        return Path(path)

    def _summary(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {
            f"squared distance correlation with {name}": value for name, value in self.correlations.items()
        }
        found |= self.dependence
        found["Jensen-Shannon divergence (nats)"] = self.js
        found["the same by chance"] = self.js_by_chance
        return found | {"largest gap of intersections": self.gap, "smallest ratio of intersections": self.ratio}


def fairness_report(
    prediction: Any,
    attributes: Any,
    target: Any = None,
    *,
    sample_weight: Any = None,
    kinds: Mapping[str, str] | None = None,
    parts: int = 4,
    bins: int = 20,
    threshold: float = 0.5,
    rows: int = 5000,
    random_state: int | None = 0,
) -> FairnessReport:
    """Metrics of a prediction by group and by intersection, and its dependence on the attributes.

    Args:
        prediction: Means, rates or probabilities of the positive class, ``(n,)``.
        attributes: See :func:`~infotorch.fairness.encode_attributes`.
        target: What came true, ``(n,)``; zeros and ones (or booleans) beside predictions in [0, 1] are classes.
        sample_weight: Positive, such as exposures; all means and shares are weighted by it, and so is the divergence.
        kinds: Of attributes, where they should not be detected.
        parts: Into which numeric attributes are cut for groups.
        bins: Of the histograms behind the Jensen-Shannon divergence.
        threshold: From which a prediction selects, for classes.
        rows: Random rows on which dependence is measured, where there are more: numbers and categories together cost
            the square. 4 at least.
        random_state: Seed of these rows, and of the predictions dealt out at random.

    Raises:
        TypeError: Types that are no numbers or categories.
        ValueError: Different lengths, fewer than 4 rows, values that are not finite or missing, an attribute with one
            level, options out of range.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1] * 25), torch.tensor([0, 1, 0, 1] * 25)
    >>> found = fairness_report((a ^ b).float(), {"a": a, "b": b})  # fair to groups, unfair to intersections
    >>> [group.metrics["prediction"] for group in found.groups], found.gap
    ([0.5, 0.5, 0.5, 0.5], 1.0)
    """
    check_range("rows", rows, 4)
    protected = encode_attributes(attributes, kinds=kinds)
    n = len(protected)
    f = _column("prediction", prediction, n)
    y = None if target is None else _column("target", target, n)
    w = torch.ones_like(f) if sample_weight is None else _column("sample_weight", sample_weight, n)
    if not bool((w > 0).all()):
        raise ValueError(f"sample_weight: expected positive numbers, got {float(w.min())}")
    if n < 4:
        raise ValueError(f"prediction: expected at least 4 rows, got {n}")
    classes = y is not None and bool(((y == 0) | (y == 1)).all() & (f >= 0).all() & (f <= 1).all())
    columns = _metrics(f, y, threshold if classes else None)
    single = [g for name in protected.names for g in _groups(columns, w, *protected.groups(name, parts=parts))]
    cell, names = protected.groups(parts=parts)
    crossed = _groups(columns, w, cell, names)
    generator = generator_of(random_state)
    some = slice(None) if n <= rows else torch.randperm(n, generator=generator)[:rows]
    g, tensors = f[some], [s[some] for s in protected.tensors]
    marginal, joint, mutual = (
        float(penalty(g, tensors, scale="std"))
        for penalty in (distance_covariance_penalty, ccdcov_penalty, jdcov_penalty)
    )
    deals = [
        group_js_divergence(f[torch.randperm(n, generator=generator)], cell, bins=bins, weights=w) for _ in range(10)
    ]
    means = _values(crossed, "prediction")
    return FairnessReport(
        groups=tuple(single),
        intersections=tuple(crossed),
        correlations={
            name: float(u_distance_correlation_sqr(g, s)) for name, s in zip(protected.names, tensors, strict=True)
        },
        dependence={
            "marginal": marginal,
            "ccdcov": joint,
            "remainder": joint - marginal,
            "jdcov": mutual,
            "joint correlation": float(u_ccdcor_sqr(g, tensors)),
        },
        js=float(group_js_divergence(f, cell, bins=bins, weights=w)),
        js_by_chance=float(torch.stack(deals).mean()),
        gap=max(means) - min(means),
        ratio=min(means) / max(means) if min(means) > 0 else None,
    )


def _column(name: str, values: Any, n: int) -> Tensor:
    sample = as_sample(name, values)
    if sample.values.shape != (n, 1):
        raise ValueError(f"{name}: expected shape ({n},), as long as the attributes, got {tuple(sample.values.shape)}")
    return sample.values.squeeze(1).double().cpu()


def _metrics(f: Tensor, y: Tensor | None, threshold: float | None) -> dict[str, tuple[Tensor, Tensor]]:
    """By name: the values to average, and which rows count."""
    everyone = torch.ones_like(f)
    found = {"prediction": (f, everyone)}
    if y is None:
        return found
    found["target"] = y, everyone
    if threshold is None:
        return {**found, "squared error": ((f - y).square(), everyone)}
    selected = (f >= threshold).double()
    return {
        **found,
        "selected": (selected, everyone),
        "accuracy": ((selected == y).double(), everyone),
        "true positives": (selected, y),
        "false positives": (selected, 1 - y),
    }


def _groups(columns: dict[str, tuple[Tensor, Tensor]], w: Tensor, cell: Tensor, names: list[str]) -> list[Group]:
    found, count = [], len(names)

    def total(values: Tensor) -> list[float]:
        return values.new_zeros(count).index_add_(0, cell, values).tolist()

    share = [mass / float(w.sum()) for mass in total(w)]
    sums = {name: (total(w * counts * values), total(w * counts)) for name, (values, counts) in columns.items()}
    rows = torch.bincount(cell, minlength=count).tolist()
    for i, name in enumerate(names):
        if rows[i]:
            metrics = {key: above[i] / below[i] if below[i] else None for key, (above, below) in sums.items()}
            found.append(Group(name, rows[i], share[i], metrics))
    return found


def _pairs(now: FairnessReport, before: FairnessReport | None) -> list[tuple[Group, Group | None]]:
    rows = [*now.groups, *now.intersections]
    if before is None:
        return [(row, None) for row in rows]
    old = [*before.groups, *before.intersections]
    if [row.name for row in old] != [row.name for row in rows]:
        raise ValueError("before: expected a report on the same groups, got one on others")
    return list(zip(rows, old, strict=True))


def _values(rows: list[Group], metric: str) -> list[float]:
    """Of a metric that every group has."""
    return [float(value) for row in rows if (value := row.metrics[metric]) is not None]


def _change(now: float | None, old: float | None, digits: int = 3) -> str:
    text = "-" if now is None else f"{now:.{digits}f}"
    return text if old is None else f"{old:.{digits}f} -> {text}"
