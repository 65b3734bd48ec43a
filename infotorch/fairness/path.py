"""How strong should the penalty be? Loss against divergence on held-out rows, along a path of strengths."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.estimators._samples import as_sample
from infotorch.estimators.base import generator_of
from infotorch.fairness.attributes import encode_attributes
from infotorch.fairness.models import FairClassifier, FairModel
from infotorch.fairness.report import FairnessReport, fairness_report

STRENGTHS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
Model = TypeVar("Model", bound=FairModel)


@dataclass(frozen=True)
class PathPoint:
    """One strength.

    Attributes:
        strength: Of the penalty.
        loss: On held-out rows, without the penalty.
        report: On the same rows.
    """

    strength: float
    loss: float
    report: FairnessReport

    @property
    def js(self) -> float:
        """Jensen-Shannon divergence between intersections beyond chance, nats."""
        return self.report.js_excess


@dataclass(frozen=True)
class PenaltyPath:
    """Points in the order of their strengths, the first without a penalty."""

    points: tuple[PathPoint, ...]

    def front(self) -> tuple[PathPoint, ...]:
        """Points that none is better than in one of loss and divergence, and no worse in the other."""

        def beaten(p: PathPoint) -> bool:
            return any(q.loss <= p.loss and q.js <= p.js and (q.loss, q.js) != (p.loss, p.js) for q in self.points)

        return tuple(p for p in self.points if not beaten(p))

    def choose(self, *, js: float | None = None, share: float | None = None) -> PathPoint:
        """The weakest penalty that meets a stated requirement.

        Args:
            js: Divergence beyond chance at most, nats.
            share: Or at most this share of what the model without a penalty has.

        Raises:
            ValueError: Not exactly one of the two, one out of range, or no strength meets it.
        """
        if (js is None) == (share is None):
            raise ValueError("js, share: expected exactly one of them")
        if share is not None:
            limit = check_range("share", share, 0.0, 1.0) * self.points[0].js
        else:
            assert js is not None
            limit = check_range("js", js, 0.0)
        for point in self.points:
            if point.js <= limit:
                return point
        best = min(self.points, key=lambda p: p.js)
        raise ValueError(
            f"{'js' if share is None else 'share'}: expected a requirement that a strength meets, got {limit:.4f} nats "
            f"at most; the least is {best.js:.4f} at strength {best.strength:g}: add stronger ones"
        )

    def table(self) -> str:
        """Text: a row per strength."""
        lines = ["strength      loss  divergence       gap"]
        lines += [f"{p.strength:8g}  {p.loss:8.4f}  {p.js:10.4f}  {p.report.gap:8.4f}" for p in self.points]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path) -> Path:
        """Draw loss against divergence."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5, 3.6))
        axes.plot([p.js for p in self.points], [p.loss for p in self.points], "o-", color="#0072B2")
        for p in self.points:
            axes.annotate(f"{p.strength:g}", (p.js, p.loss), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel("Jensen-Shannon divergence beyond chance, nats")
        axes.set_ylabel("held-out loss")
        axes.grid(alpha=0.25)
        figure.savefig(path, bbox_inches="tight", dpi=120)
        plt.close(figure)
        return Path(path)


def penalty_path(
    model: FairModel,
    X: Any,
    y: Any,
    attributes: Any,
    sample_weight: Any = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = 0.3,
    parts: int = 4,
    bins: int = 20,
    progress: bool = False,
) -> PenaltyPath:
    """Train at growing strengths, each from the weights of the one before, and report on held-out rows.

    Tune the model without a penalty first and keep its options. Divergence is used in place of a test of independence,
    which rejects everything once there are many rows.

    Args:
        model: Options of the training; it is left as it is.
        X: As in ``fit``, and so are the next three.
        y: As there.
        attributes: As there.
        sample_weight: As there.
        strengths: From 0 upwards.
        held_out: Share of the rows that are not trained on.
        parts: Into which numeric attributes are cut for groups.
        bins: Of the histograms behind the divergence.
        progress: Show a bar.

    Raises:
        ValueError: Strengths that do not rise from 0, a share out of range, more than two classes, and what ``fit``
            and `fairness_report` raise.

    Reference: Lee et al., 2025, arXiv:2509.08163, for the penalties; the protocol of a divergence on 30 % held-out rows
    is that of practice in insurance pricing.

    >>> from infotorch.fairness import FairRegressor
    >>> generator = torch.Generator().manual_seed(0)
    >>> a = torch.randint(2, (600,), generator=generator)
    >>> x = torch.randn(600, 2, generator=generator) + 2 * a.unsqueeze(1)
    >>> path = penalty_path(FairRegressor(epochs=10, batch_size=64), x, x.sum(1), {"a": a}, strengths=(0, 5, 20))
    >>> [point.strength for point in path.points], path.points[2].js < path.points[0].js
    ([0.0, 5.0, 20.0], True)
    """
    levels = [float(s) for s in strengths]
    if len(levels) < 2 or levels[0] != 0 or sorted(set(levels)) != levels:
        raise ValueError(f"strengths: expected at least two numbers that rise from 0, got {levels}")
    check_range("held_out", held_out, 0.0, 1.0, low_open=True, high_open=True)
    protected = encode_attributes(attributes, kinds=model.kinds)
    inputs, n = as_sample("X", X).values, len(protected)
    targets = np.asarray(y)
    weights = None if sample_weight is None else as_sample("sample_weight", sample_weight).values.squeeze(1)
    if not len(inputs) == len(targets) == n or (weights is not None and len(weights) != n):
        raise ValueError(f"X, y, attributes: expected equal numbers of rows, got {len(inputs)}, {len(targets)}, {n}")
    order = torch.randperm(n, generator=generator_of(model.random_state, "held out"))
    test, train = order[: round(held_out * n)], order[round(held_out * n) :]
    work = copy.deepcopy(model).set_params(warm_start=False)
    bar: Any = levels
    if progress:
        from tqdm import tqdm

        bar = tqdm(levels, desc="strengths")
    points = []
    for strength in bar:
        work.set_params(strength=strength)
        work.fit(inputs[train], targets[train], protected.rows(train), None if weights is None else weights[train])
        work.set_params(warm_start=True)
        points.append(_point(work, inputs, targets, protected.rows(test), weights, test, parts=parts, bins=bins))
    return PenaltyPath(tuple(points))


def calibrate(
    model: Model,
    X: Any,
    y: Any,
    attributes: Any,
    sample_weight: Any = None,
    *,
    js: float | None = None,
    share: float | None = None,
    **options: Any,
) -> tuple[Model, PenaltyPath]:
    """Find the weakest strength that meets a requirement, and train with it on all rows.

    Args:
        model: Options of the training; it is left as it is.
        X: As in ``fit``, and so are the next three.
        y: As there.
        attributes: As there.
        sample_weight: As there.
        js: Divergence beyond chance at most, nats; or
        share: at most this share of what the model without a penalty has.
        **options: As in :func:`penalty_path`.

    Returns:
        The fitted model, and the path.

    Raises:
        ValueError: As :func:`penalty_path` and :meth:`PenaltyPath.choose`.

    The model is trained along the path up to that strength, as it was when the strength was chosen.
    """
    path = penalty_path(model, X, y, attributes, sample_weight, **options)
    chosen, fitted = path.choose(js=js, share=share), copy.deepcopy(model).set_params(warm_start=False)
    for point in path.points:
        if point.strength <= chosen.strength:
            fitted.set_params(strength=point.strength).fit(X, y, attributes, sample_weight)
            fitted.set_params(warm_start=True)
    return fitted.set_params(warm_start=model.warm_start), path


def _point(
    model: FairModel, x: Tensor, y: np.ndarray, attributes: Any, weights: Tensor | None, rows: Tensor, **options: Any
) -> PathPoint:
    prediction, targets = model._predicted(x[rows])[0], y[rows]
    if isinstance(model, FairClassifier):
        if prediction.ndim == 2:
            raise ValueError(f"y: expected two classes, got {len(model.classes_)}: report on one probability at a time")
        targets = (targets == model.classes_[1]).astype(float)
    own = None if weights is None else weights[rows]
    report = fairness_report(prediction, attributes, targets, sample_weight=own, **options)
    return PathPoint(model.strength, model.loss(x[rows], y[rows], own), report)
