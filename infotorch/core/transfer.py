r"""Transfer entropy: what one series tells about the next value of another, beyond that one's own past.

Reference: T. Schreiber, "Measuring information transfer", 2000, arXiv:nlin/0001042.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_tensor
from infotorch.core._samples import check_paired, discrete_columns
from infotorch.core.differential import ksg_cmi
from infotorch.core.discrete import discrete_conditional_mutual_information


def lagged(
    source: Tensor, dest: Tensor, *, source_history: int = 1, dest_history: int = 1, lag: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The three variables of transfer entropy: ``dest_t``, the source's past and the destination's past.

    Args:
        source: Shape ``(n,)`` or ``(n, d)``.
        dest: Likewise.
        source_history: ``l``: the source's past is :math:`x_{t-u-l+1}, \ldots, x_{t-u}`.
        dest_history: ``m``: the destination's past is :math:`y_{t-m}, \ldots, y_{t-1}`.
        lag: ``u``, 1 for the step just before.

    Returns:
        ``(present, source_past, dest_past)``, each with one row per ``t``.

    Raises:
        ValueError: Series of different lengths, or too short; histories or a lag below 1.

    >>> present, past, own = lagged(torch.arange(4), torch.arange(10, 14))
    >>> present.squeeze(1).tolist(), past.squeeze(1).tolist(), own.squeeze(1).tolist()
    ([11, 12, 13], [0, 1, 2], [10, 11, 12])
    """
    for name, value in (("source_history", source_history), ("dest_history", dest_history), ("lag", lag)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {value!r}")
    columns = []
    for name, series in (("source", source), ("dest", dest)):
        if check_tensor(name, series).ndim not in (1, 2):
            raise ValueError(f"{name}: expected shape (n,) or (n, d), got {tuple(series.shape)}")
        columns.append(series.unsqueeze(1) if series.ndim == 1 else series)
    x, y = columns
    n = check_paired(source=x, dest=y)
    start = max(lag + source_history - 1, dest_history)
    if n <= start:
        raise ValueError(f"source, dest: expected more than {start} steps for these histories, got {n}")
    past = [x[start - lag - i : n - lag - i] for i in range(source_history)]
    own = [y[start - 1 - i : n - 1 - i] for i in range(dest_history)]
    return y[start:], torch.cat(past, 1), torch.cat(own, 1)


def transfer_entropy(
    source: Tensor,
    dest: Tensor,
    *,
    source_history: int = 1,
    dest_history: int = 1,
    lag: int = 1,
    k: int = 3,
    pointwise: bool = False,
    estimator: str = "plugin",
    **options: Any,
) -> Tensor:
    r"""Transfer entropy :math:`I(y_t; x_\mathrm{past} \mid y_\mathrm{past})` in nats, not clipped.

    Integer and boolean series are counted, floating ones go through the Frenzel-Pompe estimator.

    Args:
        source: Shape ``(n,)`` or ``(n, d)``.
        dest: Likewise.
        source_history: Length of the source's past.
        dest_history: Length of the destination's past.
        lag: Steps from the source's latest past value to the present.
        k: Neighbor (continuous series).
        pointwise: Return each step's part (continuous series).
        estimator: Entropy estimator (discrete series).
        options: For the entropy estimator (discrete) or :func:`ksg_cmi` (continuous).

    Raises:
        TypeError: One series is discrete and the other is not.
        ValueError: As :func:`lagged`; ``pointwise`` of discrete series; what the estimator raises.

    >>> source = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1])
    >>> copy = source.roll(1)
    >>> bool(transfer_entropy(source, copy) > transfer_entropy(copy, source))
    True
    """
    discrete = discrete_columns(source)
    if discrete != discrete_columns(dest):
        raise TypeError(f"source, dest: expected both discrete or both continuous, got {source.dtype} and {dest.dtype}")
    parts = lagged(source, dest, source_history=source_history, dest_history=dest_history, lag=lag)
    if not discrete:
        return ksg_cmi(*parts, k=k, pointwise=pointwise, **options)
    if pointwise:
        raise ValueError("pointwise: expected False for discrete series, got True")
    return discrete_conditional_mutual_information(*parts, estimator=estimator, **options)


@dataclass(frozen=True)
class TransferTest:
    """Transfer entropy with its surrogates.

    Attributes:
        value: The estimate, nats.
        surrogates: Estimates with the source shifted in time, ``(surrogates,)``.
        p_value: Share of surrogates (and the estimate) at least as large as the estimate.
    """

    value: Tensor
    surrogates: Tensor
    p_value: float


def transfer_entropy_test(
    source: Tensor, dest: Tensor, *, surrogates: int = 99, generator: torch.Generator | None = None, **options: Any
) -> TransferTest:
    r"""Test of no transfer: circular shifts of the source keep both series' own dynamics and break their tie.

    Args:
        source: Shape ``(n,)`` or ``(n, d)``.
        dest: Likewise.
        surrogates: Number of shifts, drawn from 1 .. n - 1.
        generator: Source of the shifts.
        options: For :func:`transfer_entropy`.

    Raises:
        ValueError: ``surrogates`` below 1; as :func:`transfer_entropy`.

    >>> source = torch.randn(100, generator=torch.Generator().manual_seed(0))
    >>> transfer_entropy_test(source, source.roll(1), surrogates=19, generator=torch.Generator().manual_seed(1)).p_value
    0.05
    """
    if surrogates < 1:
        raise ValueError(f"surrogates: expected at least 1, got {surrogates}")
    value = transfer_entropy(source, dest, **options)
    shifts = torch.randint(1, len(source), (surrogates,), generator=generator).tolist()
    null = torch.stack([transfer_entropy(source.roll(shift, 0), dest, **options) for shift in shifts])
    return TransferTest(value, null, (1 + int((null >= value).sum())) / (surrogates + 1))
