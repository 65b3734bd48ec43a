"""Independence of categories by their contingency table: random tables with the margins of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from infotorch.core.discrete import plugin_entropy

_CELLS = 1 << 20  # cells of all the tables that are held at once


def information_statistics(x: Tensor, y: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Plug-in mutual information of the data and of ``count`` random pairings of the codes ``x [n]`` and ``y [n]``.

    Where the table has fewer cells than there are points, tables are drawn instead of pairings, at a cost that does
    not grow with n.
    """
    rows, columns = torch.bincount(x), torch.bincount(y)
    marginal = plugin_entropy(rows) + plugin_entropy(columns)
    own = _joint_entropy(x, y, len(columns))
    if len(rows) * len(columns) > len(x):
        home = generator.device if generator is not None else x.device
        orders = (torch.randperm(len(x), generator=generator, device=home).to(x.device) for _ in range(count))
        null = [_joint_entropy(x, y[order], len(columns)) for order in orders]
        return marginal - torch.stack([own, *null])
    return marginal - torch.cat([own.unsqueeze(0), *_random_tables(rows, columns, count, generator)])


def _joint_entropy(x: Tensor, y: Tensor, levels: int) -> Tensor:
    return plugin_entropy(torch.unique(x * levels + y, return_counts=True)[1])


def _random_tables(rows: Tensor, columns: Tensor, count: int, generator: torch.Generator | None) -> list[Tensor]:
    """Joint entropies of random tables."""
    import numpy as np
    from scipy.stats import random_table

    home = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**62, (), generator=generator, device=home))
    source = np.random.default_rng(seed)
    tables = random_table(rows.tolist(), columns.tolist())
    found, step = [], max(1, _CELLS // (len(rows) * len(columns)))
    for start in range(0, count, step):
        drawn = tables.rvs(min(step, count - start), random_state=source)
        found.append(plugin_entropy(torch.from_numpy(drawn).to(rows.device).flatten(1)))
    return found
