"""Trajectories of earlier steps and the level that they must have beaten to be worth repeating."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean
from infotorch.losses._groups import Groups
from infotorch.losses.batch import REPLAY, Replay, TokenBatch
from infotorch.losses.tool_reward import tool_value, tool_weight

_RAGGED = ("mask", "old_log_probs", "advantages")
_OUTCOME, _TOOL, _STEP = range(3)  # columns of a row's numbers


def replay_count(usable: int, size: int) -> int:
    """How many of the usable rows are repeated: a power of two, so that they divide evenly, of at most ``size``.

    >>> [replay_count(n, 2048) for n in (0, 1, 2, 100, 5000)]
    [0, 0, 2, 64, 2048]
    """
    return 0 if usable < 2 else min(size, 1 << (usable.bit_length() - 1))


def recalibrated_advantages(
    rewards: Tensor, group_means: Tensor, group_stds: Tensor | None = None, *, eps: float = 1e-6
) -> Tensor:
    r"""How much better earlier trajectories did than groups typically do now.

    .. math:: \tilde A = R - P_{50}(\bar R_g), \qquad \tilde A \leftarrow \tilde A / (P_{50}(\sigma_g) + \epsilon)

    the second only with ``group_stds``. Medians interpolate between the middle two.

    Args:
        rewards: Of the trajectories, ``(N,)``.
        group_means: Mean rewards of recent groups, ``(G,)``.
        group_stds: Their standard deviations.
        eps: Added to the median deviation.

    Raises:
        ValueError: No group.

    >>> recalibrated_advantages(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75]))
    tensor([ 0.5000, -0.5000])
    """
    if not group_means.numel():
        raise ValueError("group_means: expected at least one group, got none")
    advantages = rewards - group_means.quantile(0.5)
    return advantages if group_stds is None else advantages / (group_stds.quantile(0.5) + eps)


@dataclass
class _Row:
    """One trajectory: ``numbers`` (outcome, tool reward, step), vectors as long as it is, and the trainer's payload."""

    numbers: Tensor
    ragged: dict[str, Tensor]
    payload: dict[str, Tensor] = field(default_factory=dict)


class ReplayBuffer(nn.Module):
    r"""Good trajectories as ragged rows on the CPU, and the group rewards by which they are judged again.

    Rows with a positive mean advantage are stored and grow too old after ``tolerate`` steps. Of the groups, mean and
    spread of the last ``baseline_size`` are kept, good or bad. When more than ``fill * size`` rows have a reward above
    the median group, :meth:`draw` repeats some of those whose recalibrated advantage is positive and empties the rows.

    Under data parallelism every process stores the rows of all (they are gathered) and repeats its share of one draw,
    so that the processes together do what one would. Everything is in ``state_dict``.

    Args:
        size: Most rows repeated at once.
        fill: Rows worth repeating, in multiples of ``size``, that start a replay.
        tolerate: Age in steps that a row may have.
        baseline_size: Groups whose means make the median. Whole steps leave, the oldest first.
        recalibrate: ``"median"`` and ``"median-std"``: :func:`recalibrated_advantages`; ``"decay"``: the row's own
            advantages times ``weight_decay``, without a second look at them.
        weight_decay: For ``"decay"``, in ``(0, 1]``.
        keep_zero: Also repeat rows that are just as good as the median.
        take: ``"pow2"``: :func:`replay_count` of the rows; ``"all"``, up to ``size``.
        eligible: Name of a boolean ``(B,)`` among the batch's extras: only such rows are stored (well-formed, say).
        reshape: Options of :func:`tool_reward` with which rewards were shaped: rows and groups are then judged by what
            they would be worth at the present step's weight (the authors: at that of their own step).
        seed: Of the draws.

    Raises:
        ValueError: An option out of range.

    Warns:
        UserWarning: Rows grow too old before there can be enough of them.

    Reference: "Learn the Ropes, Then Trust the Wins", 2025, arXiv:2509.22601.

    Deviations: the authors cap ``tolerate`` at 10; here it has no cap.
    """

    def __init__(
        self,
        *,
        size: int = 2048,
        fill: float = 1.5,
        tolerate: int = 5,
        baseline_size: int = 10240,
        recalibrate: str = "median",
        weight_decay: float = 1.0,
        keep_zero: bool = False,
        take: str = "pow2",
        eligible: str | None = None,
        reshape: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.size = int(check_range("size", size, 1))
        self.fill = check_range("fill", fill, 0.0)
        self.tolerate = int(check_range("tolerate", tolerate, 0))
        self.baseline_size = int(check_range("baseline_size", baseline_size, 1))
        self.recalibrate = check_choice("recalibrate", recalibrate, ("median", "median-std", "decay"))
        self.weight_decay = check_range("weight_decay", weight_decay, 0.0, 1.0, low_open=True)
        self.take = check_choice("take", take, ("pow2", "all"))
        self.keep_zero, self.eligible, self.seed = keep_zero, eligible, seed
        self.reshape = None if reshape is None else dict(reshape)
        for name in self.reshape or {}:
            check_choice("reshape", name, ("per_turn", "cap", "schedule", "decay"))
        self.rows: list[_Row] = []
        # Of each group: step, mean outcome, mean tool reward, their variances and covariance.
        self.groups = torch.zeros(0, 6, dtype=torch.float64)
        self.latest: dict[str, float] = {}
        self._warned = False

    def __len__(self) -> int:
        return len(self.rows)

    # -- storing -------------------------------------------------------------------------------------------------

    def store(self, batch: TokenBatch, payload: Mapping[str, Sequence[Tensor]], step: int) -> None:
        """Keep the good rows of a rollout batch and the statistics of all its groups; forget what is too old.

        Args:
            batch: Reads ``old_log_probs``, ``advantages``, ``rewards``, ``group``; with ``reshape`` also
                ``extras["tool_turns"]``.
            payload: Vectors to be kept with each row, by name.
            step: The present step.

        Raises:
            ValueError: A missing field.
        """
        batch.require("replay buffer", "rewards", "group", "advantages")
        assert batch.advantages is not None
        outcome, tool = self._parts_of_reward(batch, step)
        self._store_groups(batch, outcome, tool, step)
        good = masked_mean(batch.advantages, batch.mask, dim=1) > 0
        if self.eligible is not None:
            batch.require("replay buffer", f"extras.{self.eligible}")
            good &= batch.extras[self.eligible].bool()
        kept = good.nonzero().squeeze(1)
        numbers = torch.stack((outcome, tool, torch.full_like(outcome, step)), 1)[kept]
        ends = _ends(batch.mask)[kept].tolist()
        ragged = {
            name: [getattr(batch, name)[row, :end] for row, end in zip(kept.tolist(), ends, strict=True)]
            for name in _RAGGED
        }
        more = {name: [rows[row] for row in kept.tolist()] for name, rows in payload.items()}
        numbers = distributed.gather_cat(numbers).cpu()
        device = batch.mask.device
        types = {name: getattr(batch, name).dtype for name in _RAGGED} | {
            name: x[0].dtype for name, x in payload.items()
        }
        shared = {name: _gather(rows, types[name], device) for name, rows in (*ragged.items(), *more.items())}
        for i, own in enumerate(numbers):
            vectors = {name: rows[i] for name, rows in shared.items()}
            self.rows.append(_Row(own, {name: vectors.pop(name) for name in _RAGGED}, vectors))
        self.rows = [row for row in self.rows if step - int(row.numbers[_STEP]) <= self.tolerate]
        rows = int(distributed.all_reduce_sum(torch.tensor(len(good), device=device)))
        self._check_size(rows)

    def _check_size(self, rows: int) -> None:
        """Warn where even steps of good rows alone could not start a replay."""
        if not self._warned and rows * (self.tolerate + 1) <= self.fill * self.size:
            self._warned = True
            warnings.warn(
                f"replay buffer: {rows} rows a step that stay for {self.tolerate} steps cannot exceed fill * size = "
                f"{self.fill * self.size:g}, so that none is ever repeated; choose a smaller size",
                stacklevel=4,
            )

    def _parts_of_reward(self, batch: TokenBatch, step: int) -> tuple[Tensor, Tensor]:
        """Reward without and with only its shaping, float64 ``(B,)``."""
        assert batch.rewards is not None
        rewards = batch.rewards.detach().double()
        if self.reshape is None:
            return rewards, torch.zeros_like(rewards)
        batch.require("replay buffer", "extras.tool_turns")
        tool = tool_value(batch.extras["tool_turns"], **self._only("per_turn", "cap")).double()
        return rewards - self._weight(step) * tool, tool

    def _store_groups(self, batch: TokenBatch, outcome: Tensor, tool: Tensor, step: int) -> None:
        assert batch.group is not None
        groups = Groups(batch.group)
        means = [groups.mean(x) for x in (outcome, tool)]
        first, second = (x - mean for x, mean in zip((outcome, tool), means, strict=True))
        rest = (groups.size - 1).clamp(min=1)
        moments = [groups.sum(x) / rest for x in (first * first, second * second, first * second)]
        # A group of one has no spread; 1 leaves its rewards as they are, as group-relative advantages do.
        moments[0] = torch.where(groups.size == 1, 1.0, moments[0])
        table = torch.stack((torch.full_like(outcome, step), *means, *moments), 1)[groups.first()]
        self.groups = torch.cat((self.groups, distributed.gather_cat(table).cpu()))
        while len(self.groups) > self.baseline_size and self.groups[0, 0] < self.groups[-1, 0]:
            self.groups = self.groups[self.groups[:, 0] > self.groups[0, 0]]

    # -- judging and drawing -------------------------------------------------------------------------------------

    def _weight(self, step: int) -> float:
        """Weight of the shaping at a step; 0 where rewards are taken as they are."""
        if self.reshape is None:
            return 0.0
        return float(tool_weight(torch.tensor(step, dtype=torch.float64), **self._only("schedule", "decay")))

    def _only(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in (self.reshape or {}).items() if name in names}

    def rewards(self, step: int) -> Tensor:
        """Rewards of the stored rows, float64 ``(N,)``; with ``reshape`` at the weight of this step."""
        numbers = torch.stack([row.numbers for row in self.rows]) if self.rows else torch.zeros(0, 3).double()
        return numbers[:, _OUTCOME] + self._weight(step) * numbers[:, _TOOL]

    def baseline(self, step: int) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the groups, float64 ``(G,)``, likewise."""
        weight = self._weight(step)
        _, mean, tool, var, tool_var, cov = self.groups.unbind(1)
        spread = (var + weight * weight * tool_var + 2 * weight * cov).clamp(min=0).sqrt()
        return mean + weight * tool, spread

    def draw(self, step: int, device: torch.device | str = "cpu") -> Replay | None:
        """Rows to repeat at this step, padded, with their advantages judged again; None while there are too few.

        ``latest`` then says how many rows were ``stored``, ``usable`` (above the median group), ``kept`` (of positive
        recalibrated advantage) and ``drawn``.
        """
        rewards = self.rewards(step)
        means, stds = self.baseline(step)
        level = means.quantile(0.5) if len(means) else rewards.mean()
        usable = int((rewards > level).sum())
        self.latest = {"stored": float(len(self.rows)), "usable": float(usable), "kept": 0.0, "drawn": 0.0}
        if usable <= self.fill * self.size:
            return None
        if self.recalibrate == "decay":
            judged, kept = None, torch.arange(len(self.rows))
        else:
            judged = recalibrated_advantages(rewards, means, stds if self.recalibrate == "median-std" else None)
            kept = ((judged >= 0) if self.keep_zero else (judged > 0)).nonzero().squeeze(1)
        count = replay_count(len(kept), self.size) if self.take == "pow2" else min(len(kept), self.size)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        drawn = kept[torch.randperm(len(kept), generator=generator)[:count]]
        self.latest |= {"kept": float(len(kept)), "drawn": float(count)}
        if not count:
            return None
        replay = self._padded(drawn, rewards, judged, torch.device(device))
        self.rows = []
        return replay

    def _padded(self, drawn: Tensor, rewards: Tensor, judged: Tensor | None, device: torch.device) -> Replay:
        """This process's share; processes whose share is smaller repeat a row with nothing under its mask."""
        world, rank = distributed.world_size(), distributed.rank()
        share = drawn[rank::world]
        missing = -(-len(drawn) // world) - len(share)
        which = torch.cat((share, drawn[:missing]))
        rows = [self.rows[i] for i in which.tolist()]

        def rectangle(vectors: Sequence[Tensor]) -> Tensor:
            return pad_sequence(list(vectors), batch_first=True).to(device)

        fields = {name: rectangle([row.ragged[name] for row in rows]) for name in _RAGGED}
        fields["mask"][len(share) :] = False
        if judged is None:
            fields["advantages"] *= self.weight_decay
        else:
            fields["advantages"] = judged[which].to(fields["advantages"])
        batch = TokenBatch(
            log_probs=fields["old_log_probs"],
            old_log_probs=fields["old_log_probs"],
            advantages=fields["advantages"],
            mask=fields["mask"],
            rewards=rewards[which].to(fields["advantages"]),
            source=torch.full((len(rows),), REPLAY, device=device),
        )
        return Replay(
            batch=batch, payload={name: rectangle([row.payload[name] for row in rows]) for name in rows[0].payload}
        )

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Rows as flat tensors with their lengths, and the groups."""
        vectors: dict[str, list[Tensor]] = {}
        for row in self.rows:
            for name, x in (*row.ragged.items(), *((f"payload.{n}", x) for n, x in row.payload.items())):
                vectors.setdefault(name, []).append(x)
        return {
            "groups": self.groups,
            "numbers": torch.stack([row.numbers for row in self.rows]) if self.rows else torch.zeros(0, 3).double(),
            "values": {name: torch.cat(rows) for name, rows in vectors.items()},
            "lengths": {name: torch.tensor([len(x) for x in rows]) for name, rows in vectors.items()},
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue with the rows and groups of :meth:`get_extra_state`."""
        self.groups = state["groups"].clone()
        vectors = {name: x.split(state["lengths"][name].tolist()) for name, x in state["values"].items()}
        self.rows = []
        for i, numbers in enumerate(state["numbers"]):
            payload = {n.removeprefix("payload."): x[i] for n, x in vectors.items() if n.startswith("payload.")}
            self.rows.append(_Row(numbers, {name: vectors[name][i] for name in _RAGGED}, payload))


def _ends(mask: Tensor) -> Tensor:
    """One past each row's last valid position."""
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return torch.where(mask, positions, 0).amax(1)


def _gather(rows: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Vectors of all processes, copied to the CPU."""
    lengths = torch.tensor([len(x) for x in rows], dtype=torch.long, device=device)
    # Booleans travel as bytes, which every backend can send.
    sent = torch.uint8 if dtype == torch.bool else dtype
    flat = torch.cat([torch.empty(0, dtype=sent, device=device), *(x.detach().to(device, sent) for x in rows)])
    return list(distributed.gather_cat(flat).to("cpu", dtype).split(distributed.gather_cat(lengths).tolist()))
