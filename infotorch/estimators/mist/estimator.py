r"""MIST: mutual information from one pass of a network that was trained on distributions with known information.

Reference: "MIST: Mutual information (estimation) via supervised training", 2025, arXiv:2511.18945.

A sample :math:`\{(x_i, y_i)\}` goes in as a set; out come a point estimate, trained by squared error, and quantiles
:math:`q_\tau`, trained by the pinball loss, of the information given a sample like this one *under the distribution of
training tasks*. It is quick, steady on few points, and as good as that distribution is near to the data.

Deviations from the authors' code, all options of :class:`~infotorch.estimators.mist.network.MISTConfig` and
:class:`~infotorch.estimators.mist.weights.Training`: the weights that come with this library see canonical pairs of
normal scores, where the authors' network sees raw numbers; X and Y have their own halves of a row, so that they may
have different numbers of columns; the heads are told the size of the sample; one encoder serves both heads; columns
that the network has no place for are left to the Gaussian copula or refused, where the authors' code cuts them off;
padding is masked by its own mask, where theirs takes a row that sums to zero for padding; quantiles are sorted, so
that they do not cross.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.estimators._samples import Sample
from infotorch.estimators._variables import as_numbers, warn_of_shared_columns
from infotorch.estimators.base import Estimate, PairEstimator, generator_of, paired_samples, warn
from infotorch.estimators.mist.inputs import Pair, soft_view_pair, view_pairs
from infotorch.estimators.mist.network import MISTNetwork, PairBatch
from infotorch.estimators.mist.weights import Training, load_weights

# Numbers in the tokens of a pass: on a CPU what its cache holds, on a GPU what keeps it busy.
_CPU_NUMBERS, _GPU_NUMBERS = 1 << 19, 1 << 24
_POINTS_PER_COLUMN = 8  # with more columns than trained for; with fewer points the Gaussian copula alone is closer


class _Learned(PairEstimator):
    """Types of what a fit learns: were they in the dataclass, they would be arguments."""

    median_: float | None
    n_subsets_: int


@dataclass(kw_only=True, repr=False, eq=False)
class MIST(_Learned):
    """Mutual information of continuous variables by a network trained beforehand: milliseconds, and no fit to speak of.

    More points than the network was trained for are split at random into subsets, whose estimates are averaged. Of more
    columns, canonical pairs beyond those that the network reads count as in
    :class:`~infotorch.estimators.CopulaMI`, with a warning; that takes 8 points for each column of both sides.

    Args:
        weights: A ``.safetensors`` file with its JSON file beside it; None for the weights of the library.
        confidence: Of ``interval_``; None for no interval.
        clip: Report 0 for negative estimates.
        max_subsets: Most subsets that are looked at.
        extrapolate: Take fewer points than the network was trained for (or than more columns ask for), with a
            warning, and not refuse them.
        random_state: Seed of the split; None draws one.

    Attributes:
        mutual_information_: Point estimate in nats; without a head for it, the median.
        interval_: Between the quantiles that hold ``confidence``: a credible interval under the distribution of
            training tasks, averaged over the subsets, and so for the size of one of them (wider than need be).
        std_error_: None: the network gives quantiles.
        median_: Median of the same, or None without a head for quantiles.
        n_subsets_: Subsets that were looked at.

    Raises:
        FileNotFoundError: In ``fit``: no weights at the path.
        ValueError: In ``fit``: different numbers of points, values that are not finite, more columns than the network
            takes, too few points, weights that do not fit their description.

    >>> from infotorch.distributions import bivariate_normal
    >>> mist = MIST.from_pretrained().fit(*bivariate_normal(0.75).sample(300))
    >>> low, high = mist.interval_
    >>> low < 0.41 < high
    True
    """

    weights: str | Path | None = None
    confidence: float | None = 0.95
    clip: bool = False
    max_subsets: int = 16
    extrapolate: bool = False
    random_state: int | None = 0

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, **options: Any) -> MIST:
        """An estimator with the weights at ``path``, or with those of the library; the file is read right away.

        Raises:
            FileNotFoundError: No weights there.
            ValueError: Weights that do not fit their description.
        """
        load_weights(path)
        return cls(weights=path, **options)

    @property
    def network(self) -> MISTNetwork:
        """The network, in evaluation mode."""
        return load_weights(self.weights)[0]

    @property
    def training(self) -> Training:
        """What it was trained on."""
        return load_weights(self.weights)[1]

    def estimate_many(self, pairs: Sequence[tuple[Any, Any]]) -> Tensor:
        """Point estimates of many samples, of any sizes, in few passes.

        Args:
            pairs: Samples ``(x, y)``, each as for ``fit``.

        Returns:
            Shape ``(len(pairs),)``, float64, nats.

        Raises:
            ValueError: As ``fit``, for any of them.

        >>> from infotorch.distributions import bivariate_normal
        >>> MIST().estimate_many([bivariate_normal(0.9).sample(100, seed) for seed in range(3)]).shape
        torch.Size([3])
        """
        if not pairs:
            return torch.zeros(0, dtype=torch.float64)
        prepared = [self._checked(x, y) for x, y in pairs]
        generator = generator_of(self.random_state)
        subsets = [self._subsets(x, y, generator) for x, y in prepared]
        views = view_pairs([pair for group in subsets for pair in group], self.training.view)
        value = _point(*self._read(views, (0.5,)))
        value = torch.stack([part.mean() for part in value.split([len(group) for group in subsets])])
        return value.clamp(min=0) if self.clip else value

    def quantiles(self, x: Any, y: Any, levels: Sequence[float]) -> Tensor:
        """Quantiles of the information given a sample like this, from one pass of the encoder.

        Args:
            x: Shape ``(n, dx)`` or ``(n,)``.
            y: Likewise.
            levels: Which, in (0, 1).

        Returns:
            Shape ``(len(levels),)``, float64, nats, in the order of the levels; averaged over subsets.

        Raises:
            ValueError: As ``fit``; no head for quantiles; a level outside (0, 1).

        >>> from infotorch.distributions import bivariate_normal
        >>> low, middle, high = MIST().quantiles(*bivariate_normal(0.75).sample(100), levels=(0.1, 0.5, 0.9))
        >>> bool(low < middle < high)
        True
        """
        for level in levels:
            check_range("levels", level, 0.0, 1.0, low_open=True, high_open=True)
        ordered = sorted(levels)
        subsets = self._subsets(*self._checked(x, y), generator_of(self.random_state))
        _, found = self._read(view_pairs(subsets, self.training.view), tuple(ordered))
        if found is None:
            raise ValueError("weights: expected a network with a head for quantiles, got one without")
        return found.mean(0)[[ordered.index(level) for level in levels]]

    def information(self, x: Tensor, y: Tensor, *, softness: float = 0.1) -> Tensor:
        """The point estimate of one sample, differentiable in it: a training objective for what made the numbers.

        Where the network looks at ranks, they are softened: the value differs a little from ``fit``'s.

        Args:
            x: Shape ``(n, dx)`` or ``(n,)``, floating.
            y: Likewise.
            softness: Width of the kernel that softens ranks, in standard deviations of a column.

        Returns:
            0-d, nats.

        Raises:
            TypeError: No floating tensors.
            ValueError: As ``fit``.

        >>> x = torch.linspace(-1, 1, 100, requires_grad=True)
        >>> MIST().information(x, x.detach().sin() + torch.linspace(0, 9, 100).cos()).backward()
        >>> bool(x.grad.isfinite().all())
        True
        """
        check_range("softness", softness, 0.0, low_open=True)
        sides: list[Tensor] = []
        for name, v in (("x", x), ("y", y)):
            if not isinstance(v, Tensor) or not v.is_floating_point():
                raise TypeError(
                    f"{name}: expected a floating-point tensor, got {getattr(v, 'dtype', type(v).__name__)}"
                )
            sides.append(v.unsqueeze(1) if v.ndim == 1 else v)
        paired_samples(x=x.detach(), y=y.detach())
        self._check_sizes(sides[0], sides[1], most=True)
        network = self.network.to(x.device)
        a, b = soft_view_pair(sides[0], sides[1], self.training.view, softness)
        if not (a.shape[1] and b.shape[1]):  # constant columns alone
            return (a.sum() + b.sum()).float() * 0
        levels = torch.full((1, 1), 0.5, device=x.device)
        return _point(*network(PairBatch.of([(a.float(), b.float())]), levels))[0]

    def _checked(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Numbers of a sample that the network may be asked about."""
        samples = paired_samples(x=x, y=y)
        x, y = (self._prepare(name, sample) for name, sample in samples.items())
        self._check_sizes(x, y)
        warn_of_shared_columns(x, y)
        return x, y

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        return as_numbers(name, sample)

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        check_range("max_subsets", self.max_subsets, 1)
        if self.confidence is not None:
            check_range("confidence", self.confidence, 0.0, 1.0, low_open=True, high_open=True)
        self._check_sizes(x, y)
        warn_of_shared_columns(x, y)
        subsets = self._subsets(x, y, generator_of(self.random_state))
        tail = (1 - (self.confidence or 0.95)) / 2
        means, quantiles = self._read(view_pairs(subsets, self.training.view), (tail, 0.5, 1 - tail))
        median = None if quantiles is None else float(quantiles[:, 1].mean())
        value = float(means.mean()) if means is not None else median
        assert value is not None
        interval = None
        if self.confidence is not None and quantiles is not None:
            interval = (float(quantiles[:, 0].mean()), float(quantiles[:, 2].mean()))
        if self.clip:
            value = max(0.0, value)
            interval = interval and (max(0.0, interval[0]), max(0.0, interval[1]))
        if interval is not None and not interval[0] <= value <= interval[1]:
            warn(f"the point estimate, {value:.2f} nats, is outside its interval: the network has seen no such data")
        return Estimate(value, interval=interval, extra={"median": median, "n_subsets": len(subsets)})

    def _check_sizes(self, x: Tensor, y: Tensor, *, most: bool = False) -> None:
        training = self.training
        (fewest, largest), (_, widest) = training.points, training.columns
        if training.equal and x.shape[1] != y.shape[1]:
            raise ValueError(
                "x, y: expected equal numbers of columns, which the network was trained on, "
                f"got {x.shape[1]} and {y.shape[1]}"
            )
        if most and len(x) > largest:
            raise ValueError(f"x, y: expected at most {largest} points, which the network was trained on, got {len(x)}")
        if len(x) < fewest:
            text = f"{fewest} points or more, which the network was trained on, got {len(x)}"
            if not self.extrapolate or len(x) < 4:
                raise ValueError(f"x, y: expected {text}")
            warn(f"x, y: extrapolated: the network expects {text}")
        for name, v in (("x", x), ("y", y)):
            if v.shape[1] > widest:
                self._check_wide(name, v.shape[1], x.shape[1] + y.shape[1], len(x) // self._parts(len(x)))
                break

    def _check_wide(self, name: str, columns: int, total: int, points: int) -> None:
        """More columns of a side than the network was trained for; points are those of a subset."""
        widest = self.training.columns[1]
        text = f"{name}: expected at most {widest} columns, which the network was trained on"
        if self.training.view != "canonical" or not self.network.config.summary:
            raise ValueError(f"{text}, got {columns}")
        needed = total + 1 if self.extrapolate else _POINTS_PER_COLUMN * total
        if points < needed:
            raise ValueError(
                f"{text}, or {needed} points in a pass ({total} columns on both sides), got {columns} and {points}; "
                "take CopulaMI" + ("" if self.extrapolate else " or extrapolate=True")
            )
        warn(
            f"{name}: {columns} columns, the network was trained on {widest} at most: it reads the {widest} leading "
            "canonical pairs, the others count as in CopulaMI; its quantiles may be too narrow then"
        )

    def _parts(self, n: int) -> int:
        """Subsets that ``n`` points make."""
        return math.ceil(n / self.training.points[1])

    def _subsets(self, x: Tensor, y: Tensor, generator: torch.Generator) -> list[Pair]:
        """The sample in random parts of equal sizes that the network is used to."""
        count = self._parts(len(x))
        if count == 1:
            return [(x, y)]
        size = len(x) // count
        parts = torch.randperm(len(x), generator=generator)[: size * count].to(x.device).split(size)
        return [(x[rows], y[rows]) for rows in parts[: self.max_subsets]]

    @torch.no_grad()
    def _read(self, views: list[Pair], levels: tuple[float, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Means and sorted quantiles of samples as the network takes them; 0 where a side says nothing."""
        device, config = views[0][0].device, self.network.config
        network = self.network.to(device)
        means = torch.zeros(len(views), dtype=torch.float64) if config.mean else None
        quantiles = torch.zeros(len(views), len(levels), dtype=torch.float64) if config.quantile else None
        # Samples of one size need no padding.
        order = [i for i, (x, y) in enumerate(views) if x.shape[1] and y.shape[1]]
        order.sort(key=lambda i: (len(views[i][0]), views[i][0].shape[1] + views[i][1].shape[1]))
        most = _CPU_NUMBERS if device.type == "cpu" else _GPU_NUMBERS
        asked = torch.tensor(levels, device=device)
        while order:
            size = max(1, most // self._numbers(views[order[-1]]))
            rows, order = order[-size:], order[:-size]
            batch = PairBatch.of([(x.float(), y.float()) for x, y in (views[i] for i in rows)])
            for all_of, found in zip((means, quantiles), network(batch, asked.expand(len(rows), -1)), strict=True):
                if all_of is not None and found is not None:
                    all_of[rows] = found.double().cpu()
        return means, None if quantiles is None else quantiles.sort(1).values

    def _numbers(self, view: Pair) -> int:
        """Numbers in the tokens of a sample."""
        config, columns = self.network.config, view[0].shape[1] + view[1].shape[1]
        return len(view[0]) * config.width * (columns if config.arch == "2d" else 1)


def _point(mean: Tensor | None, quantiles: Tensor | None) -> Tensor:
    """The mean, or without a head for it the first quantile asked for."""
    if mean is not None:
        return mean
    assert quantiles is not None
    return quantiles[:, 0]
