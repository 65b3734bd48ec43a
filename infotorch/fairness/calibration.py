"""The strength of a penalty by its path: loss against disparity on held-out rows, from no penalty to a strong one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infotorch.core._checks import check_range
from infotorch.estimators._samples import as_sample
from infotorch.estimators.base import generator_of
from infotorch.fairness.models import FairModel
from infotorch.fairness.module import FairBatch
from infotorch.fairness.report import fairness_report

STRENGTHS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class PathPoint:
    """One strength, on held-out rows.

    Attributes:
        strength: Factor of the penalty.
        loss: Held-out loss.
        js: Jensen-Shannon divergence of the predictions between intersections, nats.
        js_chance: What it is by chance for groups of these sizes.
        gap: Largest less smallest mean prediction over the intersections.
    """

    strength: float
    loss: float
    js: float
    js_chance: float
    gap: float


@dataclass(frozen=True)
class StrengthPath:
    """What `strength_path` finds, from the weakest penalty to the strongest.

    Attributes:
        points: One for each strength.
    """

    points: tuple[PathPoint, ...]

    def front(self) -> tuple[PathPoint, ...]:
        """Points that no other beats in both loss and divergence."""
        return tuple(
            p
            for p in self.points
            if not any(q.loss <= p.loss and q.js <= p.js and (q.loss < p.loss or q.js < p.js) for q in self.points)
        )

    def choose(self, *, js: float | None = None, share: float | None = None) -> PathPoint:
        """The weakest penalty that meets a requirement.

        Args:
            js: Largest Jensen-Shannon divergence, nats.
            share: Or: the largest share of the divergence without a penalty, chance taken off both.

        Raises:
            ValueError: Not exactly one requirement, or none of the strengths meets it.
        """
        if (js is None) == (share is None):
            raise ValueError("js, share: expected exactly one of them")
        if share is not None:
            check_range("share", share, 0.0, 1.0)
            first = self.points[0]
            js = first.js_chance + share * max(0.0, first.js - first.js_chance)
        assert js is not None
        for point in self.points:
            if point.js <= js:
                return point
        least = min(self.points, key=lambda p: p.js)
        raise ValueError(
            f"js: expected at least {least.js:.4f}, which strength {least.strength:g} reaches, got {js:.4f}; "
            "try greater strengths"
        )


def strength_path(
    model: FairModel,
    X: Any,
    y: Any,
    attributes: Mapping[str, Any],
    *,
    exposure: Any = None,
    strengths: Sequence[float] = STRENGTHS,
    holdout: float = 0.3,
    bins: int = 20,
    progress: bool = False,
) -> StrengthPath:
    """Train at growing strengths, each from the weights of the one before, and measure all on held-out rows.

    Tune everything else without a penalty first and keep it; look at the path; state what fairness is required; take
    the weakest strength that meets it. Divergences are preferred to tests here, which reject everything on many rows.

    Args:
        model: Options of training; its ``strength`` and ``warm_start`` are set on the way, on a copy.
        X: Inputs ``(n, d)``.
        y: Targets ``(n,)``.
        attributes: Protected attributes by name.
        exposure: As for ``model.fit``.
        strengths: Increasing, from 0.
        holdout: Share of the rows that are held out.
        bins: Of the histograms.
        progress: Show a bar.

    Raises:
        ValueError: Strengths that do not increase from 0, a share outside (0, 1), and what ``fit`` raises.

    Reference: Lee et al., 2025, arXiv:2509.08163 (the penalties; the rule is that of a third-party package).

    >>> from infotorch.fairness import FairRegressor
    >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    >>> path = strength_path(FairRegressor(epochs=2), x, x.sum(1), {"side": x[:, 0] > 0}, strengths=(0.0, 1.0))
    >>> [point.strength for point in path.points]
    [0.0, 1.0]
    """
    if list(strengths) != sorted(set(strengths)) or not strengths or strengths[0] != 0:
        raise ValueError(f"strengths: expected numbers that increase from 0, got {list(strengths)}")
    check_range("holdout", holdout, 0.0, 1.0, low_open=True, high_open=True)
    n = len(as_sample("X", X))
    order = torch.randperm(n, generator=generator_of(model.random_state, "holdout"))
    held, kept = order[: round(holdout * n)], order[round(holdout * n) :]
    train, test = (_rows(rows, X=X, y=y, exposure=exposure, **attributes) for rows in (kept, held))
    names = list(attributes)
    kind, points = type(model), []
    fitted = kind(**model.get_params(deep=False) | {"warm_start": True})
    steps: Any = strengths
    if progress:
        from tqdm import tqdm

        steps = tqdm(strengths, desc="strengths")
    for strength in steps:
        fitted.set_params(strength=float(strength))
        options = {"exposure": train["exposure"]}
        fitted.fit(train["X"], train["y"], {name: train[name] for name in names}, **options)
        prediction = fitted._predicted(test["X"])
        positive = prediction if prediction.ndim == 1 else prediction[:, -1]
        found = fairness_report(positive, {name: test[name] for name in names}, exposure=test["exposure"], bins=bins)
        loss = held_out_loss(fitted, test["X"], test["y"], exposure=test["exposure"])
        points.append(PathPoint(float(strength), loss, found.js, found.js_chance, found.gap))
    return StrengthPath(tuple(points))


@torch.no_grad()
def held_out_loss(model: FairModel, X: Any, y: Any, *, exposure: Any = None) -> float:
    """The loss that a fitted model was trained for, without its penalty, on other rows.

    Raises:
        ValueError: Different lengths, values that are not finite, labels that the training did not have.
    """
    x = model._standardized(model._inputs(X))
    known = getattr(model, "classes_", None) if hasattr(model, "predict_proba") else None
    if known is None:
        target = model._targets(y)
    else:
        labels = y.tolist() if isinstance(y, torch.Tensor) else list(y)
        codes = {label: i for i, label in enumerate(known.tolist())}
        unknown = sorted({str(label) for label in labels if label not in codes})
        if unknown:
            raise ValueError(f"y: expected labels among {known.tolist()}, got {', '.join(unknown)}")
        target = torch.tensor([float(codes[label]) for label in labels])
    at_risk = torch.ones(len(x)) if exposure is None else model._exposure(exposure, len(x))
    module = model.module_
    return float(module.link.loss(module.model(x), FairBatch(x, target, at_risk, ())))


def _rows(rows: torch.Tensor, **columns: Any) -> dict[str, Any]:
    """These rows of arrays, tensors and lists."""
    index = rows.tolist()

    def take(values: Any) -> Any:
        if values is None:
            return None
        if isinstance(values, torch.Tensor):
            return values[rows]
        if hasattr(values, "iloc"):
            return values.iloc[index]
        if hasattr(values, "take"):
            return values.take(index, axis=0)
        return [values[i] for i in index]

    return {name: take(values) for name, values in columns.items()}
