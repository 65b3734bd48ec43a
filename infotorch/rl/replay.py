"""Transitions and the buffer that draws them again, uniformly or by priority.

Reference: T. Schaul et al., "Prioritized experience replay", 2016, arXiv:1511.05952.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infotorch.core._checks import check_range

__all__ = ["ReplayBuffer", "SumTree", "Transitions"]


class Transitions(NamedTuple):
    r"""Rows :math:`(s, a, R, s', \gamma')` of one or several steps.

    Attributes:
        obs: Observations s, ``(B, ...)``.
        action: Their actions: indices ``(B,)``, int64, or continuous ones ``(B, d)``.
        reward: Discounted sum of the rewards of the steps, ``(B,)``.
        next_obs: Observations s' after them, ``(B, ...)``. Of a truncated episode its last one, not that of a reset.
        discount: What the value of s' counts, ``(B,)``: :math:`\gamma^n`, and 0 where the episode terminated. A
            truncated episode still bootstraps.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    discount: Tensor

    def to(self, device: torch.device | str) -> Transitions:
        """The same on another device."""
        return Transitions(*(x.to(device) for x in self))

    def check(self, actions: int | None = None) -> Transitions:
        """Return the rows if they fit together.

        Raises:
            ValueError: Lengths or shapes that differ, no row, rewards or continuous actions that are not finite,
                discounts outside [0, 1], actions that are no index below ``actions`` (if that is given).
        """
        rows = len(self.obs)
        if not rows:
            raise ValueError("obs: expected at least one transition, got none")
        if self.next_obs.shape != self.obs.shape:
            raise ValueError(f"next_obs: expected shape {tuple(self.obs.shape)}, got {tuple(self.next_obs.shape)}")
        continuous = self.action.ndim == 2 and actions is None
        for name in ("reward", "discount") if continuous else ("action", "reward", "discount"):
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"{name}: expected shape ({rows},), got {tuple(getattr(self, name).shape)}")
        if continuous:
            if len(self.action) != rows or not self.action.is_floating_point():
                got = f"{tuple(self.action.shape)} of {self.action.dtype}"
                raise ValueError(f"action: expected indices ({rows},) or floating-point ({rows}, d), got {got}")
        elif self.action.is_floating_point():
            raise ValueError(f"action: expected indices, got {self.action.dtype}")
        else:
            low, high = int(self.action.min()), int(self.action.max())
            if low < 0 or (actions is not None and high >= actions):
                raise ValueError(f"action: expected indices in [0, {actions}), got {low} to {high}")
        for name in ("action", "reward") if continuous else ("reward",):
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        if not bool(((self.discount >= 0) & (self.discount <= 1)).all()):
            raise ValueError("discount: expected numbers in [0, 1]")
        return self


class SumTree:
    """Priorities with their partial sums: setting and drawing cost a logarithm of the size.

    Args:
        size: Number of leaves.

    >>> tree = SumTree(3)
    >>> tree.set(np.array([0, 1, 2]), np.array([1.0, 2.0, 3.0]))
    >>> tree.total, tree.find(np.array([0.5, 2.0, 5.9])).tolist()
    (6.0, [0, 1, 2])
    """

    def __init__(self, size: int) -> None:
        self.depth = max(size - 1, 1).bit_length()
        self.leaves = 1 << self.depth
        self.nodes = np.zeros(2 * self.leaves)

    @property
    def total(self) -> float:
        """Sum of the priorities."""
        return float(self.nodes[1])

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.nodes[index + self.leaves]

    def set(self, index: np.ndarray, priority: np.ndarray) -> None:
        """Set priorities; of an index that occurs twice, one wins."""
        node = index + self.leaves
        self.nodes[node] = priority
        for _ in range(self.depth):
            node = node >> 1
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]  # not increments, which drift

    def find(self, mass: np.ndarray) -> np.ndarray:
        """The leaf at which the running sum of priorities exceeds each mass."""
        node, mass = np.ones(len(mass), dtype=np.int64), mass.astype(np.float64)
        for _ in range(self.depth):
            left = self.nodes[2 * node]
            # Rounding may leave a mass at the very end of a subtree: never enter an empty one.
            right = (mass >= left) & (self.nodes[2 * node + 1] > 0)
            node, mass = 2 * node + right, mass - left * right
        return node - self.leaves


class ReplayBuffer:
    r"""The last ``capacity`` transitions, on the CPU, in memory that grows with them.

    With ``alpha`` > 0 row i is drawn with probability :math:`P_i \propto (|\delta_i| + \epsilon)^\alpha`; new rows get
    the largest priority so far. The weights :math:`(N P_i)^{-\beta}`, divided by the largest of the batch, make up for
    it. Under data parallelism every process has a buffer of its own.

    Args:
        capacity: Rows kept.
        alpha: Exponent of the priorities; 0 draws uniformly.
        beta: Exponent of the weights.
        eps: Added to the errors.
        seed: Of the draws.

    Raises:
        ValueError: An option out of range.

    Reference: T. Schaul et al., 2016, arXiv:1511.05952.

    >>> buffer = ReplayBuffer(4)
    >>> rows = torch.arange(6.0)
    >>> buffer.add(Transitions(rows.view(6, 1), torch.zeros(6).long(), rows, rows.view(6, 1), torch.ones(6)))
    >>> len(buffer), sorted(set(buffer.sample(64)[0].reward.tolist()))  # the first two are gone
    (4, [2.0, 3.0, 4.0, 5.0])
    """

    def __init__(
        self, capacity: int, *, alpha: float = 0.0, beta: float = 0.4, eps: float = 1e-3, seed: int = 0
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected a positive int, got {capacity}")
        self.capacity = capacity
        self.alpha, self.beta = check_range("alpha", alpha, 0.0, 1.0), check_range("beta", beta, 0.0, 1.0)
        self.eps = check_range("eps", eps, 0.0, low_open=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.tree = SumTree(capacity) if alpha else None
        self.largest, self.added = 1.0, 0
        self._rows: Transitions | None = None

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, rows: Transitions) -> None:
        """Store rows over the oldest.

        Raises:
            ValueError: Rows that do not fit together or to those in the buffer.
        """
        rows = rows.check()
        if self._rows is not None:
            for name, store, x in zip(Transitions._fields, self._rows, rows, strict=True):
                if x.shape[1:] != store.shape[1:]:
                    expected, got = tuple(store.shape[1:]), tuple(x.shape[1:])
                    raise ValueError(f"{name}: expected rows of shape {expected}, got {got}")
        if len(rows.obs) > self.capacity:
            rows = Transitions(*(x[-self.capacity :] for x in rows))
        count = len(rows.obs)
        stores = self._reserve(rows, min(self.added + count, self.capacity))
        start = self.added % self.capacity
        fits = min(count, self.capacity - start)  # the others begin again at 0
        for store, x in zip(stores, rows, strict=True):
            store[start : start + fits] = x[:fits]
            if fits < count:
                store[: count - fits] = x[fits:]
        if self.tree is not None:
            self.tree.set((start + np.arange(count)) % self.capacity, np.full(count, self.largest))
        self.added += count

    def _reserve(self, rows: Transitions, size: int) -> Transitions:
        """Memory for ``size`` transitions like the given ones."""
        reserved = 0 if self._rows is None else len(self._rows.obs)
        if self._rows is None or reserved < size:
            larger = min(max(2 * reserved, size, 1024), self.capacity)
            grown = Transitions(*(x.new_zeros(larger, *x.shape[1:], device="cpu") for x in self._rows or rows))
            for new, old in zip(grown, self._rows or (), strict=False):
                new[:reserved] = old
            self._rows = grown
        return self._rows

    def sample(self, size: int) -> tuple[Transitions, Tensor, Tensor]:
        """Rows, their index, and their weights ``(size,)``, drawn with replacement.

        Raises:
            ValueError: The buffer is empty.
        """
        if self._rows is None:
            raise ValueError("sample: expected at least one stored transition, got none")
        if self.tree is None:
            index, weight = torch.randint(len(self), (size,), generator=self.generator), torch.ones(size)
        else:
            # One draw from each of equal strata of the mass.
            u = (torch.arange(size) + torch.rand(size, generator=self.generator, dtype=torch.float64)) / size
            found = self.tree.find(u.numpy() * self.tree.total)
            index = torch.from_numpy(found)
            weight = torch.from_numpy(self.tree[found] / self.tree.total * len(self)).pow(-self.beta)
            weight = (weight / weight.max()).float()
        return Transitions(*(x[index] for x in self._rows)), index, weight

    def update(self, index: Tensor, error: Tensor) -> None:
        """Set the priorities of drawn rows from their errors; nothing to do where the draws are uniform."""
        if self.tree is not None:
            priority = (error.detach().double().cpu().abs() + self.eps).pow(self.alpha).numpy()
            self.tree.set(index.numpy(), priority)
            self.largest = max(self.largest, float(priority.max()))

    def state_dict(self) -> dict[str, Any]:
        """Rows, priorities and the state of the generator."""
        rows = None if self._rows is None else [x[: len(self)].clone() for x in self._rows]
        tree = None if self.tree is None else torch.from_numpy(self.tree[np.arange(self.capacity)])
        state = {"rows": rows, "priorities": tree, "generator": self.generator.get_state()}
        return {**state, "largest": self.largest, "added": self.added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; the capacity must be the same.

        Raises:
            ValueError: Another capacity, or priorities in one of the two only.
        """
        priorities, rows = state["priorities"], state["rows"]
        stored = 0 if rows is None else len(rows[0])
        if stored != min(state["added"], self.capacity) or (priorities is None) != (self.tree is None):
            raise ValueError("state: expected a buffer of the same capacity and kind of draws")
        self._rows = None
        if rows is not None:
            for store, x in zip(self._reserve(Transitions(*rows), stored), rows, strict=True):
                store[:stored] = x
        if self.tree is not None:
            if len(priorities) != self.capacity:
                raise ValueError(f"state: expected {self.capacity} priorities, got {len(priorities)}")
            self.tree.set(np.arange(self.capacity), priorities.numpy())
        self.largest, self.added = state["largest"], state["added"]
        self.generator.set_state(state["generator"])
