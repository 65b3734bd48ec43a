"""What verl calls as an advantage estimator, and what a loss needs formed of the whole rollout batch.

The driver has the complete groups; actors get rows of them. So the driver runs `Recipe.prepare` on a recipe of its own:
rewards and advantage of ``adv_estimator``, and of ``loss_mode`` the parts that keep something of whole groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infotorch.core.distributed import one_process
from infotorch.integrations._fields import answer_ids, turns_of
from infotorch.integrations.verl._checks import advantage_parts, check_advantage, loss_parts, of_kinds, required
from infotorch.integrations.verl._registry import Entry, entries, entry_of
from infotorch.integrations.verl._side import EXTRA, ROWS, side
from infotorch.losses import Part, Recipe, TokenBatch

_NO_ANSWER = (None, "", "[INVALID]")  # the last is what verl's own scorers return


class Driver:
    """The recipe that the driver prepares rollout batches with.

    Args:
        estimator: Name of ours that is ``adv_estimator``, or None.
        loss_mode: Name of ours that is ``loss_mode``, or None.
    """

    def __init__(self, estimator: str | None, loss_mode: str | None) -> None:
        self.names = (estimator, loss_mode)
        former = None if estimator is None else entry_of(estimator).build()
        losses = [] if loss_mode is None else loss_parts(entry_of(loss_mode).build())
        kept = [part for part in losses if type(part).rearrange is not Part.rearrange]
        if estimator is not None and former is not None:
            check_advantage(estimator, former)
        self.recipe = Recipe(
            next((part for part in kept if part.info.kind == "policy"), "ppo"),
            advantage=None if former is None else former.advantage,
            rewards=[] if former is None else of_kinds(former, "reward"),
            regularizers=[part for part in kept if part.info.kind == "regularizer"],
        )
        self.acts = former is not None or bool(kept)
        """Whether there is anything to do."""
        self.early = required([*([] if former is None else advantage_parts(former)), *kept])
        """What it reads."""
        self.rows = [name for name in ROWS if name in required(losses)]
        """Values per row that the loss reads."""

    @property
    def entry(self) -> Entry:
        """Who says where answers come from: the recipe that reads them."""
        estimator, loss_mode = self.names
        reads = [] if estimator is None else required(advantage_parts(self.recipe))
        name = estimator if estimator is not None and ("answer" in reads or loss_mode is None) else loss_mode
        assert name is not None
        return entries[name]

    def record(self, rows: Mapping[str, Any]) -> TokenBatch:
        """The record of a rollout batch in verl's names."""
        mask = rows["response_mask"].bool()
        rewards = next(rows[name] for name in ("token_level_rewards", "rm_scores") if name in rows).sum(1)
        old = rows.get("old_log_probs")
        old = torch.zeros_like(mask, dtype=torch.float32) if old is None else old
        uid = rows.get("uid")
        group = torch.arange(len(mask)) if uid is None else answer_ids(_listed(uid))
        fields: dict[str, Any] = {}
        read = {"entropy": ("entropy", "old_entropy", "entropys"), "ref_log_probs": ("ref_log_prob",)}
        for name, theirs in {**read, "tokens": ("responses",), "advantages": ("advantages",)}.items():
            value = next((rows[key] for key in theirs if rows.get(key) is not None), None)
            if value is not None:
                fields[name] = value
        if "answer" in self.early:
            fields["answer"] = answer_ids(self._answers(rows, mask)).to(mask.device)
        turn = turns_of(mask)
        return TokenBatch(
            log_probs=old,
            old_log_probs=old,
            mask=mask,
            rewards=rewards,
            group=group.to(mask.device),
            turn=turn,
            trajectory=torch.arange(len(mask), device=mask.device),
            extras=self._extras(rows, turn),
            **fields,
        )

    def _answers(self, rows: Mapping[str, Any], mask: Tensor) -> Sequence[Hashable | None]:
        source = self.entry.answers
        if isinstance(source, str):
            found = column(rows, source)
            if found is None:
                names = " ".join(str(name) for name in self.names if name)
                raise ValueError(
                    f"answers: {names} needs the extracted answers: let the reward function return {{'score': ..., "
                    f"{source!r}: ...}}, or register the recipe with answers=the key it uses, or a function of the "
                    "responses' tokens"
                )
        else:
            tokens = rows.get("responses")
            if tokens is None:
                raise ValueError("answers: the batch holds no responses to extract them from")
            found = source([row[keep] for row, keep in zip(tokens, mask, strict=True)])
        if len(found) != len(mask):
            raise ValueError(f"answers: expected {len(mask)}, one per response, got {len(found)}")
        return [None if value in _NO_ANSWER else value for value in found]

    def _extras(self, rows: Mapping[str, Any], turn: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in sorted(name.removeprefix("extras.") for name in self.early if name.startswith("extras.")):
            values = rows[name] if isinstance(rows.get(name), Tensor) else column(rows, name)
            if values is not None:
                found[name] = torch.as_tensor(values, device=turn.device)
            elif name == "tool_turns":  # between two runs of the policy's own tokens stands what a tool wrote
                found[name] = turn.amax(1).clamp(min=0)
        return found

    @torch.no_grad()
    def prepare(self, rows: Mapping[str, Any]) -> dict[str, Tensor]:
        """Advantages, what the loss reads of each row, and extras, for all rows; 0 in rows that are padding.

        Raises:
            ValueError: A field that the recipe reads is missing.
        """
        count = len(rows["response_mask"])
        keep = torch.tensor([i for i, padding in enumerate(rows.get("padding", [False] * count)) if not padding])
        own = self.record({name: _taken(value, keep, count) for name, value in rows.items()})
        with one_process():
            done = self.recipe.prepare(own)
        found = {name: getattr(done, name) for name in ("advantages", *self.rows)}
        found |= {EXTRA + name: value for name, value in done.extras.items() if name not in own.extras}
        return {
            name: value.new_zeros(count, *value.shape[1:]).index_copy(0, keep.to(value.device), value)
            for name, value in found.items()
            if value is not None
        }

    def wanted(self) -> list[str]:
        """Fields of verl's batch that are read besides those which verl gives an estimator."""
        found = {"entropy" for name in ("entropy", "sampling_entropy") if name in self.early}
        found |= {"ref_log_prob"} if "ref_log_probs" in self.early else set()
        found |= {"responses"} if "tokens" in self.early else set()
        if "answer" in self.early:
            source = self.entry.answers
            found |= {source, "extra_fields"} if isinstance(source, str) else {"responses"}
        extras = {name.removeprefix("extras.") for name in self.early if name.startswith("extras.")}
        return sorted(found | extras | ({"extra_fields"} if extras else set()))


def column(rows: Mapping[str, Any], name: str) -> list[Any] | None:
    """One value per row: a field of the batch, or what the reward function returned under that name."""
    if rows.get(name) is not None:
        return _listed(rows[name])
    infos = [(extra or {}).get("reward_extra_info") or {} for extra in _listed(rows.get("extra_fields", []))]
    return [info.get(name) for info in infos] if any(name in info for info in infos) else None


def _taken(values: Any, keep: Tensor, count: int) -> Any:
    """Some rows of a field; what has no rows stays as it is."""
    if isinstance(values, Tensor):
        return values[keep.to(values.device)]
    return [values[i] for i in keep.tolist()] if hasattr(values, "__len__") and len(values) == count else values


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


_drivers: dict[tuple[str | None, str | None], Driver] = {}
_loss_mode: str | None = None


def set_loss_mode(loss_mode: str | None) -> None:
    """Which recipe's loss the actors of this process's trainer use."""
    global _loss_mode
    _loss_mode = loss_mode


def driver(estimator: str | None, loss_mode: str | None) -> Driver:
    """The driver's recipe in this process; its state lives as long as the process."""
    key = (estimator, loss_mode)
    if key not in _drivers:
        _drivers[key] = Driver(*key)
    return _drivers[key]


def present_driver(estimator: str | None) -> Driver:
    """That of the trainer in this process, where verl does not tell what the loss is."""
    return driver(estimator, _loss_mode)


def forget(full: str) -> None:
    """Drop what was built from a name that is registered anew."""
    for key in [key for key in _drivers if full in key]:
        del _drivers[key]


def advantage(
    full: str, token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, config: Any = None, **further: Any
) -> tuple[Tensor, Tensor]:
    """Verl's contract of an advantage estimator: advantages and returns ``(B, T)``."""
    here = side()
    rows = {**({} if here is None else here.fields), **further}
    rows |= {"token_level_rewards": token_level_rewards, "response_mask": response_mask}
    rows.pop("advantages", None)
    if index is not None:
        rows["uid"] = index
    driven = present_driver(full) if here is None or here.driven is None else here.driven
    prepared = driven.prepare(rows)
    if here is not None:
        here.prepared = prepared
    return prepared["advantages"], prepared["advantages"]
