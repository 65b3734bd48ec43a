"""How predictions differ between groups and between their intersections, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.dependence import ccdcov_sqr, distance_correlation_sqr, distance_covariance_sqr, group_js_divergence
from infotorch.estimators._samples import as_sample
from infotorch.fairness.attributes import Attributes
from infotorch.fairness.penalties import scale_prediction


@dataclass(frozen=True)
class GroupRow:
    """One group.

    Attributes:
        group: Name.
        share: Of all rows (of all exposure, where given).
        prediction: Mean prediction.
        target: Mean target, or None without targets.
        gap: Mean prediction less that of all.
        ratio: Mean prediction over that of all, or None where the latter is 0.
    """

    group: str
    share: float
    prediction: float
    target: float | None
    gap: float
    ratio: float | None


@dataclass(frozen=True)
class FairnessReport:
    """What `fairness_report` finds.

    Attributes:
        groups: Rows for every group of every attribute.
        intersections: Rows for every combination that occurs.
        correlations: Squared distance correlation with each attribute.
        marginal: Sum of the squared distance covariances of the standardized prediction with the attributes.
        joint: The same with all attributes as one vector (CCdCov).
        remainder: ``joint - marginal``: what the combinations add, of either sign.
        js: Jensen-Shannon divergence of the prediction between intersections, nats.
        js_chance: The same with predictions dealt at random: its bias for groups of these sizes.
        gap: Largest less smallest mean prediction over the intersections.
    """

    groups: tuple[GroupRow, ...]
    intersections: tuple[GroupRow, ...]
    correlations: dict[str, float]
    marginal: float
    joint: float
    remainder: float
    js: float
    js_chance: float
    gap: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        rows = {"groups": [vars(r) for r in self.groups], "intersections": [vars(r) for r in self.intersections]}
        return vars(self) | rows

    def table(self) -> str:
        """As text."""
        rows = [("group", "share", "prediction", "target", "gap")]
        for r in (*self.groups, *self.intersections):
            target = "" if r.target is None else f"{r.target:.3f}"
            rows.append((r.group, f"{r.share:.3f}", f"{r.prediction:.3f}", target, f"{r.gap:+.3f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"distance correlation² with {name}: {value:.4f}" for name, value in self.correlations.items()]
        lines.append(f"distance covariance² one by one {self.marginal:.4f}, jointly {self.joint:.4f}")
        lines.append(f"Jensen-Shannon divergence {self.js:.4f} nats ({self.js_chance:.4f} by chance)")
        return "\n".join(lines)

    def plot(self, path: str | Path, before: FairnessReport | None = None) -> Path:
        """Draw the mean prediction of every group and intersection.

        Args:
            path: File to write.
            before: A report on the same people to compare with.

        Raises:
            ValueError: ``before`` is of other groups.
        """
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        rows = (*self.groups, *self.intersections)
        names = [r.group for r in rows]
        old = () if before is None else (*before.groups, *before.intersections)
        if old and [r.group for r in old] != names:
            raise ValueError("before: expected a report of the same groups, got others")
        figure, axes = plt.subplots(figsize=(7, 0.8 + 0.28 * len(rows)))
        for i, row in enumerate(rows):
            if old:
                axes.plot([old[i].prediction, row.prediction], [i, i], color="0.8", zorder=1)
                axes.scatter(old[i].prediction, i, color="#E69F00", zorder=2, label="before" if i == 0 else None)
            axes.scatter(row.prediction, i, color="#0072B2", zorder=3, label="after" if old and i == 0 else None)
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.axhline(len(self.groups) - 0.5, color="0.6", lw=0.8)
        axes.set_xlabel("mean prediction")
        if old:
            axes.legend(frameon=False)
        figure.savefig(path, bbox_inches="tight", dpi=120)
        plt.close(figure)
        return Path(path)


def fairness_report(
    prediction: Any,
    attributes: Mapping[str, Any],
    target: Any = None,
    *,
    exposure: Any = None,
    bins: int = 20,
    parts: int = 4,
    random_state: int = 0,
) -> FairnessReport:
    """Measure how a prediction differs between groups.

    Args:
        prediction: Means, rates or probabilities of the positive class, ``(n,)``.
        attributes: Protected attributes by name, see :class:`~infotorch.fairness.Attributes`.
        target: What came true, ``(n,)``.
        exposure: Weights ``(n,)``, positive; means are weighted by them.
        bins: Of the histograms behind the Jensen-Shannon divergence.
        parts: Into which a numeric attribute is cut for groups.
        random_state: Seed of the predictions dealt at random.

    Raises:
        TypeError: Arguments of another type.
        ValueError: Different lengths, values that are not finite, an attribute with one level.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> a, b = torch.tensor([0, 0, 1, 1] * 25), torch.tensor([0, 1, 0, 1] * 25)
    >>> found = fairness_report((a ^ b).float(), {"a": a, "b": b})
    >>> abs(found.marginal) < 1e-12, round(found.joint, 4), found.gap  # fair to each group, unfair to intersections
    (True, 0.1464, 1.0)
    """
    check_range("bins", bins, 1)
    found = Attributes.of(attributes)
    values = {"prediction": prediction, "target": target, "exposure": exposure}
    columns: dict[str, Tensor] = {}
    for name, column in values.items():
        if column is None:
            continue
        sample = as_sample(name, column)
        if sample.values.shape != (len(found), 1):
            raise ValueError(
                f"{name}: expected shape ({len(found)},) as the attributes, got {tuple(sample.values.shape)}"
            )
        columns[name] = sample.values.squeeze(1).double().cpu()
    f = columns["prediction"]
    w = columns.get("exposure", torch.ones_like(f))
    if not bool((w > 0).all()):
        raise ValueError(f"exposure: expected positive numbers, got {float(w.min())}")
    single = [
        row for name in found.columns for row in _rows(f, columns.get("target"), w, *found.groups(name, bins=parts))
    ]
    cells, names = found.groups(bins=parts)
    crossed = _rows(f, columns.get("target"), w, cells, names)
    unit, tensors = scale_prediction(f, "std"), found.tensors()
    marginal = sum(float(distance_covariance_sqr(unit, a)) for a in tensors)
    joint = float(ccdcov_sqr(unit, tensors))
    generator = torch.Generator().manual_seed(random_state)
    dealt = [f[torch.randperm(len(f), generator=generator)] for _ in range(20)]
    means = [row.prediction for row in crossed]
    return FairnessReport(
        groups=tuple(single),
        intersections=tuple(crossed),
        correlations={name: float(distance_correlation_sqr(f, a)) for name, a in found.columns.items()},
        marginal=marginal,
        joint=joint,
        remainder=joint - marginal,
        js=float(group_js_divergence(f, cells, bins=bins, weights=w)),
        js_chance=sum(float(group_js_divergence(d, cells, bins=bins, weights=w)) for d in dealt) / len(dealt),
        gap=max(means) - min(means),
    )


def _rows(f: Tensor, target: Tensor | None, w: Tensor, cells: Tensor, names: tuple[str, ...]) -> list[GroupRow]:
    overall = float((w @ f) / w.sum())
    found = []
    for code, name in enumerate(names):
        inside = cells == code
        weight = w[inside]
        mean = float(weight @ f[inside] / weight.sum())
        truth = None if target is None else float(weight @ target[inside] / weight.sum())
        ratio = mean / overall if overall else None
        found.append(GroupRow(name, float(weight.sum() / w.sum()), mean, truth, mean - overall, ratio))
    return found
