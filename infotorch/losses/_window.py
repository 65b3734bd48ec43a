"""A mean over an optimizer step, for parts that run a controller."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infotorch.core import distributed


class StepMean(nn.Module):
    """Gathers sums and counts of every micro-batch since the last step, so that gradient accumulation changes nothing.

    The open window is in ``state_dict``; under data parallelism it is summed over ranks when it is closed.

    >>> window = StepMean()
    >>> window.add(torch.tensor(3.0), torch.tensor(2))
    >>> window.close()
    (tensor(1.5000, dtype=torch.float64), tensor(True))
    """

    sums: Tensor

    def __init__(self, *shape: int) -> None:
        """``shape``: that of the totals, a scalar by default."""
        super().__init__()
        self.register_buffer("sums", torch.zeros(2, *shape, dtype=torch.float64))

    def add(self, total: Tensor, count: Tensor) -> None:
        """Note a micro-batch's sum and number of entries."""
        self.sums += torch.stack((total.detach().double(), count.detach().double()))

    def close(self) -> tuple[Tensor, Tensor]:
        """The mean over all that was added, and whether anything was; the window is empty afterwards."""
        total, count = distributed.all_reduce_sum(self.sums)
        self.sums.zero_()
        return total / count.clamp(min=1), count > 0
