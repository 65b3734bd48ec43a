"""Rows of TRL's generation batches: putting batches under one another, filling up to a number of rows, counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.losses import AUXILIARY, REPLAY, Replay, TokenBatch

PREFIX = "infotorch/"
SOURCE = PREFIX + "source"
_LEFT = ("prompt_ids", "prompt_mask")
# What pads a key on the right, and stands in the rows of a batch that lacks it; 0 for any other.
_FILLS = {"tool_mask": 1, "importance_sampling_ratio": 1}
_FILLS |= {PREFIX + name: -1 for name in ("group", "answer", "trajectory", "turn")}
# Keys whose rows are images or tiles, or as long as prompt and completion together: TRL's forward pass takes them.
IMAGES = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


def mask_of(batch: Mapping[str, Any]) -> Tensor:
    """The policy's own tokens: completions less what tools wrote."""
    mask = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if batch.get("tool_mask") is not None else mask


def counts_of(batch: Mapping[str, Any]) -> Tensor:
    """Tokens and sequences, float64 ``(2,)``; with a source ``(2, 3)``.

    >>> counts_of({"completion_mask": torch.tensor([[1, 1], [1, 0]]), SOURCE: torch.tensor([0, 2])}).tolist()
    [[2.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    """
    tokens = mask_of(batch).sum(1).double()
    both = torch.stack((tokens, (tokens > 0).double()))
    source = batch.get(SOURCE)
    return both.sum(1) if source is None else both.new_zeros(2, 3).index_add(1, source, both)


def join(batches: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Any]:
    """The rows of several batches under one another, padded to the longest; scalars are added up.

    Prompts are padded on the left, completions and what goes with their tokens on the right.

    Raises:
        ValueError: A batch with images.

    >>> one, two = ({"prompt_ids": torch.ones(1, n), "completion_mask": torch.ones(1, n)} for n in (1, 2))
    >>> joined = join((one, two), pad_id=0)
    >>> joined["prompt_ids"].tolist(), joined["completion_mask"].tolist()
    ([[0.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]])
    """
    keys = list(dict.fromkeys(key for batch in batches for key, value in batch.items() if value is not None))
    images = [key for key in keys if key in IMAGES]
    if images:
        raise ValueError(
            "recipe: it adds rows to those that TRL sampled (a second sample set or replay), which is not possible "
            f"for prompts with images; got {', '.join(images)}"
        )
    fills = {**_FILLS, "prompt_ids": pad_id, "completion_ids": pad_id}
    masks = [mask_of(batch) for batch in batches]
    return {key: _join(key, [batch.get(key) for batch in batches], masks, fills.get(key, 0)) for key in keys}


def _join(key: str, values: Sequence[Any], masks: Sequence[Tensor], fill: float) -> Tensor:
    known = next(value for value in values if value is not None)
    if known.ndim == 0:
        return torch.stack([value for value in values if value is not None]).sum()
    if key == "importance_sampling_ratio":  # one a sequence or one a token, as TRL is told
        values = [None if x is None else x.expand_as(mask) for x, mask in zip(values, masks, strict=True)]
    like = next((x, mask) for x, mask in zip(values, masks, strict=True) if x is not None)
    left = key in _LEFT
    wide = left or like[0].shape[:2] == like[1].shape
    width = max(x.shape[1] for x in values if x is not None) if left else max(mask.shape[1] for mask in masks)
    parts = []
    for x, mask in zip(values, masks, strict=True):
        if x is None:
            x = known.new_full((len(mask), *((width,) if wide else ()), *like[0].shape[2 if wide else 1 :]), fill)
        if wide and x.shape[1] < width:
            missing = width - x.shape[1]
            ends = (missing, 0) if left else (0, missing)
            x = nn.functional.pad(x, (*(0, 0) * (x.ndim - 2), *ends), value=fill)
        parts.append(x)
    return torch.cat(parts)


def fill_up(batch: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """As many rows as wanted: the first is repeated with nothing under its mask, of a source of its own.

    >>> filled = fill_up({"completion_mask": torch.ones(1, 2), SOURCE: torch.tensor([0])}, 3)
    >>> filled["completion_mask"].sum(1).tolist(), filled[SOURCE].tolist()
    ([2.0, 0.0, 0.0], [0, 1, 1])
    """
    have = len(batch["completion_mask"])
    missing = rows - have
    if missing <= 0:
        return dict(batch)
    found = {
        name: x if x is None or x.ndim == 0 else torch.cat((x, x[:1].expand(missing, *x.shape[1:])))
        for name, x in batch.items()
    }
    empty_rows(found, torch.arange(rows, device=batch["completion_mask"].device) >= have)
    return found


def empty_rows(batch: dict[str, Any], rows: Tensor) -> None:
    """Leave nothing of the given rows that a loss or an advantage could read, in place: mask, reward, group."""
    zeros = ("completion_mask", "advantages", PREFIX + "rewards")
    for name, value in (*((name, 0) for name in zeros), (SOURCE, AUXILIARY)):
        if batch.get(name) is not None:
            batch[name] = batch[name].clone()
            batch[name][rows] = value
    if batch.get(PREFIX + "group") is not None:
        apart = -1 - torch.arange(len(rows), device=rows.device)
        batch[PREFIX + "group"] = torch.where(rows, apart, batch[PREFIX + "group"])


def payload_of(fields: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """What computing a row's log-probabilities again takes, row by row on the CPU.

    Args:
        fields: ``prompt_ids`` and ``prompt_mask``, padded anywhere; ``tokens`` and ``mask``, padded on the right.
    """
    ids, prompt, tokens, mask = (fields[n].cpu() for n in ("prompt_ids", "prompt_mask", "tokens", "mask"))
    ends = torch.where(mask, torch.arange(1, mask.shape[1] + 1), 0).amax(1).tolist()
    prompts = [row[kept.bool()] for row, kept in zip(ids, prompt, strict=True)]
    completions = [row[:end] for row, end in zip(tokens, ends, strict=True)]
    # Rows come back padded with 0, which may be a token: their lengths travel as vectors of ones.
    return {
        "prompt": prompts,
        "prompt_mask": [torch.ones_like(x) for x in prompts],
        "completion": completions,
        "completion_mask": [torch.ones_like(x) for x in completions],
    }


def repeated(replay: Replay, *, rank: int, world_size: int, tools: bool) -> dict[str, Any] | None:
    """This process's share of the rows that a recipe wants repeated, as TRL's batch; None if it has none.

    Args:
        replay: Rows with the payload of :func:`payload_of`.
        rank: Which process this is.
        world_size: Of how many.
        tools: Whether TRL's batches tell the policy's tokens from those of tools.
    """
    batch, share = replay.batch, torch.arange(rank, len(replay.batch.mask), world_size)
    if not len(share):
        return None
    kept = batch.select(share.to(batch.mask.device))
    rows = {name: x[share.to(x.device)].to(kept.mask.device) for name, x in replay.payload.items()}
    lengths = rows["prompt_mask"].sum(1).tolist()
    # The completion follows its prompt, so prompts move to the right.
    moved = {
        name: torch.stack([row.roll(len(row) - length) for row, length in zip(rows[name], lengths, strict=True)])
        for name in ("prompt", "prompt_mask")
    }
    width = rows["completion"].shape[1]  # a recipe may leave more padding than there are tokens
    assert kept.advantages is not None
    assert kept.old_log_probs is not None
    found: dict[str, Any] = {
        "prompt_ids": moved["prompt"],
        "prompt_mask": moved["prompt_mask"],
        "completion_ids": rows["completion"],
        "completion_mask": rows["completion_mask"],
        "advantages": kept.advantages[:, :width],
        "old_per_token_logps": kept.old_log_probs[:, :width],
        PREFIX + "rewards": kept.rewards,
        SOURCE: torch.full_like(kept.mask[:, 0], REPLAY, dtype=torch.long),
    }
    if tools:
        found["tool_mask"] = kept.mask[:, :width].to(rows["completion_mask"])
    return found


def record_of(fields: Mapping[str, Tensor]) -> TokenBatch:
    """The record of fields by name; names that it does not have, and those under ``extras/``, are its extras."""
    known = {field.name for field in dataclasses.fields(TokenBatch) if field.init}
    record: Any = {name: value for name, value in fields.items() if name in known}
    extras = {name.removeprefix("extras/"): value for name, value in fields.items() if name not in known}
    return TokenBatch(**record, extras=extras)


def cut(batch: TokenBatch, length: int) -> TokenBatch:
    """The first ``length`` positions of what the caller goes on to use."""
    changes: dict[str, Any] = {}
    for name in ("log_probs", "old_log_probs", "mask", "old_entropy", "advantages", "turn"):
        value = getattr(batch, name)
        if value is not None:
            changes[name] = value[:, :length]
    for name in ("entropy", "top_p_entropy", "ref_log_probs", "tokens", "rollout_weights"):
        changes[name] = None
    whole = batch.mask.shape
    extras = {name: x[:, :length] if x.shape[:2] == whole else x for name, x in batch.extras.items()}
    return batch.replace(**changes, extras=extras)
