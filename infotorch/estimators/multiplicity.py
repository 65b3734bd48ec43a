"""Many p-values at once: adjusted so that their family keeps its error rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import check_choice

METHODS = ("holm", "benjamini_hochberg", "benjamini_yekutieli", "bonferroni")


def adjust_p_values(p: Any, method: str = "benjamini_hochberg") -> Any:
    r"""Adjusted p-values: reject those at most :math:`\alpha`.

    With m p-values, :math:`p_{(1)} \le \ldots \le p_{(m)}`:

    - ``"bonferroni"``: :math:`m p_i`;
    - ``"holm"``: :math:`\max_{j \le i} (m - j + 1) p_{(j)}`;
    - ``"benjamini_hochberg"``: :math:`\min_{j \ge i} \frac mj p_{(j)}`;
    - ``"benjamini_yekutieli"``: the same times :math:`\sum_{j=1}^m 1/j`.

    The first two bound the probability of a single false rejection, under any dependence. The others bound the
    expected share of false ones among the rejections: Benjamini-Hochberg for p-values that are independent or
    positively dependent, Benjamini-Yekutieli for all.

    Args:
        p: p-values in [0, 1]: tensor, array or list of any shape, taken as one family.
        method: See above.

    Returns:
        Float64 of the shape of ``p``, at most 1: a tensor for a tensor, else an array.

    Raises:
        ValueError: A p-value outside [0, 1] or NaN; unknown method.

    References:
        - S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
        - Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", 1995.
        - Y. Benjamini and D. Yekutieli, "The control of the false discovery rate in multiple testing under dependency",
          2001.

    >>> adjust_p_values([0.01, 0.04, 0.03], "holm")
    array([0.03, 0.06, 0.06])
    >>> adjust_p_values([0.01, 0.04, 0.03], "benjamini_hochberg")
    array([0.03, 0.04, 0.04])
    """
    check_choice("method", method, METHODS)
    tensor = isinstance(p, Tensor)
    values = p.detach().double() if tensor else torch.from_numpy(np.array(p, dtype=np.float64))
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"p: expected numbers in [0, 1], got {int((~((values >= 0) & (values <= 1))).sum())} others")
    flat, m = values.flatten(), values.numel()
    ordered, order = flat.sort()
    rank = torch.arange(1, m + 1, dtype=flat.dtype, device=flat.device)
    if method == "bonferroni":
        adjusted = m * ordered
    elif method == "holm":
        adjusted = ((m - rank + 1) * ordered).cummax(0).values if m else ordered
    else:
        scale = m / rank * (rank.reciprocal().sum() if method == "benjamini_yekutieli" else 1.0)
        adjusted = (scale * ordered).flip(0).cummin(0).values.flip(0) if m else ordered
    result = torch.empty_like(flat).scatter_(0, order, adjusted.clamp(max=1)).view(values.shape)
    return result if tensor else result.numpy()
