"""Sorting where it is quickest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def argsort(x: Tensor) -> Tensor:
    """Ascending order along the last dimension, without gradient; equal entries come in any order.

    On a CPU by numpy, whose sort of floats is vectorized where torch's is not.

    >>> argsort(torch.tensor([3.0, 1.0, 2.0]))
    tensor([1, 2, 0])
    """
    if x.device.type == "cpu":
        return torch.from_numpy(np.argsort(x.detach().numpy(), axis=-1))
    return x.detach().argsort(-1)
