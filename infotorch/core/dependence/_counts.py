"""Independence of categories by their contingency table: random tables with the margins of the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from infotorch.core.discrete import plugin_entropy

_CELLS = 1 << 20  # cells of all the tables that are held at once


Entropy = Callable[[Tensor], Tensor]


def information_statistics(
    x: Tensor, y: Tensor, count: int, generator: torch.Generator | None, entropy: Entropy = plugin_entropy
) -> Tensor:
    """Mutual information of the data and of ``count`` random pairings of the codes ``x [n]`` and ``y [n]``.

    Where the table has fewer cells than there are points, tables are drawn instead of pairings, at a cost that does
    not grow with n.
    """
    rows, columns = torch.bincount(x), torch.bincount(y)
    marginal = entropy(rows) + entropy(columns)
    own = _joint_entropy(x, y, len(columns), entropy)
    if 1 in (len(rows), len(columns)):  # one table only, which scipy's generator gets wrong
        return (marginal - own).expand(count + 1)
    if len(rows) * len(columns) > len(x):
        home = generator.device if generator is not None else x.device
        orders = (torch.randperm(len(x), generator=generator, device=home).to(x.device) for _ in range(count))
        null = [_joint_entropy(x, y[order], len(columns), entropy) for order in orders]
        return marginal - torch.stack([own, *null])
    return marginal - torch.cat([own.unsqueeze(0), *_random_tables(rows, columns, count, generator, entropy)])


def _joint_entropy(x: Tensor, y: Tensor, levels: int, entropy: Entropy) -> Tensor:
    return entropy(torch.unique(x * levels + y, return_counts=True)[1])


def _random_tables(
    rows: Tensor, columns: Tensor, count: int, generator: torch.Generator | None, entropy: Entropy
) -> list[Tensor]:
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
        found.append(entropy(torch.from_numpy(drawn).to(rows.device).flatten(1)))
    return found
