"""Samples as estimators want them: numbers without useless columns, on comparable scales; or codes of categories."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.core.differential import jitter
from infotorch.core.discrete import joint_codes
from infotorch.core.gaussian import normal_scores
from infotorch.estimators._samples import Sample
from infotorch.estimators.base import generator_of, warn

_SAME = 1e-10  # difference from 1 of a squared correlation below which one column is the other in other units
_NARROW = 0.4  # middle half of the points, relative to a normal column of the same standard deviation

Standardize = bool | str


def as_numbers(
    name: str,
    sample: Sample,
    *,
    standardize: Standardize = False,
    noise: float = 0.0,
    random_state: int | None = 0,
    mixed: bool = False,
    tails: bool = True,
) -> Tensor:
    """Float64 columns that vary and say something new, ``(n, d)`` with ``d`` possibly 0.

    Args:
        name: For messages.
        sample: The variable.
        standardize: True for mean 0 and standard deviation 1, ``"normal_scores"`` for normal scores of the ranks.
        noise: Scale of seeded noise that breaks ties, as in :func:`infotorch.core.differential.jitter`.
        random_state: Its seed.
        mixed: The estimator takes categories too: integers give no warning, and codes without order keep their
            distance of at least 1.
        tails: Warn where a scaled column has heavy tails.
    """
    if standardize not in (True, False, "normal_scores"):
        raise ValueError(f'standardize: expected True, False or "normal_scores", got {standardize!r}')
    check_range("noise", noise, 0.0)
    x = sample.values.double()
    if sample.discrete and not mixed:
        distinct = max(len(column.unique()) for column in x.T)
        warn(
            f"{name}: integers or categories ({distinct} distinct values in {len(x)} points) given to an estimator of "
            "continuous variables; they are read as numbers"
        )
    x = informative_columns(name, x)
    if x.shape[1] and not (sample.nominal and mixed):
        if standardize == "normal_scores":
            x = normal_scores(x)
        elif standardize:
            x = (x - x.mean(0)) / x.std(0)
            if tails:
                _warn_of_tails(name, x)
    if noise:
        x = jitter(x, scale=noise, generator=generator_of(random_state, f"noise {name}", x.device))
    return x


def as_codes(name: str, sample: Sample) -> Tensor:
    """One category per row, ``(n,)`` from 0; several columns make one joint category."""
    if sample.discrete:
        return joint_codes(sample.values)
    columns = [torch.unique(column, return_inverse=True, return_counts=True)[1:] for column in sample.values.T]
    distinct, once = max((len(counts), int((counts == 1).sum())) for _, counts in columns)
    warn(
        f"{name}: floats given to an estimator of discrete variables; each of {distinct} distinct values in "
        f"{len(sample)} points is a category of its own ({once} of them occur once)"
    )
    return joint_codes(torch.stack([codes for codes, _ in columns], 1))


def informative_columns(name: str, x: Tensor) -> Tensor:
    """Without constant columns and without copies of earlier ones (in other units, too), with a warning."""
    varies = (x != x[:1]).any(0)
    if not bool(varies.all()):
        which = ", ".join(map(str, (~varies).nonzero().flatten().tolist()))
        warn(f"{name}: constant columns carry no information and are left out: {which}")
        x = x[:, varies]
    if x.shape[1] < 2:
        return x
    units = _units(x)
    same = ((units.T @ units).square() > 1 - _SAME).triu(1)
    copies = same.any(0)
    if bool(copies.any()):
        pairs = ", ".join(f"{j} of {int(same[:, j].nonzero()[0])}" for j in copies.nonzero().flatten().tolist())
        warn(f"{name}: columns that repeat another (in other units, perhaps) add nothing and are left out: {pairs}")
        x = x[:, ~copies]
    return x


def warn_of_shared_columns(x: Tensor, y: Tensor) -> None:
    """A continuous column on both sides has infinite mutual information with itself."""
    if not (x.shape[1] and y.shape[1]):
        return
    shared = ((_units(x).T @ _units(y)).square() > 1 - _SAME).nonzero().tolist()
    if shared:
        i, j = shared[0]
        warn(
            f"x, y: {len(shared)} columns stand on both sides (x {i} is y {j}, in other units perhaps); if they are "
            "continuous the true mutual information is infinite, and the estimate only says how many points there are"
        )


def _units(x: Tensor) -> Tensor:
    """Centered columns of length 1, whose products are correlations."""
    x = x - x.mean(0)
    return x / x.norm(dim=0).clamp(min=1e-300)


def _warn_of_tails(name: str, x: Tensor) -> None:
    """``x`` is standardized."""
    quartiles = torch.quantile(x[: 2**20], x.new_tensor([0.25, 0.75]), dim=0)
    width = (quartiles[1] - quartiles[0]) / 1.349
    narrow = ((width > 0) & (width < _NARROW)).nonzero().flatten().tolist()
    if narrow:
        worst = narrow[int(width[narrow].argmin())]
        warn(
            f"{name}: column {worst} has heavy tails (its middle half is {float(width[worst]):.2f} of what a normal "
            'column would have), which hides structure from neighbors; standardize="normal_scores" keeps it'
        )
