"""The record that every loss reads, and the one that every loss returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_tensor, is_traced
from infotorch.core._choice import ones_inside, zero_outside

_PER_TOKEN = (
    "log_probs",
    "old_log_probs",
    "entropy",
    "old_entropy",
    "top_p_entropy",
    "ref_log_probs",
    "rollout_weights",
    "advantages",
)
_IDS = ("tokens", "turn")  # integers, one per token
_ROW_IDS = ("group", "answer", "trajectory", "source")  # integers, one per row
_PER_ROW = ("rewards", *_ROW_IDS)

ON_POLICY = 0
"""Value of :attr:`TokenBatch.source` for rows sampled for this step."""
AUXILIARY = 1
"""For rows sampled besides, at another temperature."""
REPLAY = 2
"""For rows of earlier steps."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """A batch of sampled completions: B rows of T tokens, in nats.

    Shapes are checked once, here. Whatever stands outside ``mask`` is replaced by 0 on the way in, so padding
    may hold anything (NaN included) and gets no gradient; half precision is widened to float32, since bfloat16
    cannot hold a ratio near 1. Parts need not think of either again.

    Attributes:
        log_probs: Log-probability of each sampled token under the current policy, shape ``(B, T)``; the
            tensor through which losses send their gradient.
        mask: Boolean, shape ``(B, T)``: True on completion tokens.
        old_log_probs: The same under the policy that sampled, ``(B, T)``. Default: ``log_probs`` detached,
            the strictly on-policy case.
        advantages: ``(B, T)``, or ``(B,)`` to be spread over each row's tokens.
        entropy: Entropy of the current policy at each token, ``(B, T)``; with gradient where a regularizer is to
            act through it.
        old_entropy: The same under the policy that sampled, ``(B, T)``; :meth:`Recipe.prepare` fills it from
            ``entropy``.
        top_p_entropy: Entropy of the renormalized nucleus, ``(B, T)``, likewise with gradient
            (``token_stats(..., extras=["top_p_entropy"])``).
        ref_log_probs: Log-probabilities under a reference policy, ``(B, T)``.
        rewards: One number per completion, ``(B,)``.
        group: Integer id of each completion's prompt, ``(B,)``.
        tokens: Ids of the sampled tokens, integers, ``(B, T)``.
        turn: Integer id of each token's turn in a dialogue, ``(B, T)``; negative outside every turn.
        answer: Integer id of each completion's extracted answer, ``(B,)``; equal answers have equal ids, -1 stands
            for none.
        trajectory: Integer id of the dialogue that a row belongs to, ``(B,)``, where a row is one turn of it.
        source: 0 for rows sampled for this step (all, if missing), 1 for auxiliary rows, 2 for replayed ones,
            ``(B,)``; a :class:`Recipe` shows each part the rows it is meant for.
        rollout_weights: Importance weights ``(B, T)`` that multiply the policy loss (mismatch between the
            sampling engine and the trainer).
        num_tokens: Number of valid tokens of the whole optimizer step, over all micro-batches and ranks: a number,
            or one per source, ``(3,)``. Default: this batch's own.
        num_sequences: Number of sequences, likewise.
        world_size: Multiplies every loss; set it to the number of ranks together with the global counts, since
            data parallelism takes the mean of the ranks' gradients.
        extras: Further tensors with B rows, by name, for parts that need them.
        inside: The mask as ones and zeros of the log-probabilities' type, ``(B, T)``; formed here, like the next.
        num_valid: Number of this batch's valid tokens, at least 1 and of that type: a divisor.
        validate: Whether to look at the values too (finite on valid tokens). One synchronization on a GPU.

    Raises:
        TypeError: A field that is no tensor, a mask that is not boolean.
        ValueError: A shape that does not fit, an empty batch, a value on a valid token that is not finite.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 3), mask=torch.ones(2, 3, dtype=torch.bool),
    ...                    advantages=torch.tensor([1.0, -1.0]))
    >>> batch.advantages
    tensor([[ 1.,  1.,  1.],
            [-1., -1., -1.]])
    """

    log_probs: Tensor
    mask: Tensor
    old_log_probs: Tensor | None = None
    advantages: Tensor | None = None
    entropy: Tensor | None = None
    old_entropy: Tensor | None = None
    top_p_entropy: Tensor | None = None
    ref_log_probs: Tensor | None = None
    rewards: Tensor | None = None
    group: Tensor | None = None
    tokens: Tensor | None = None
    turn: Tensor | None = None
    answer: Tensor | None = None
    trajectory: Tensor | None = None
    source: Tensor | None = None
    rollout_weights: Tensor | None = None
    num_tokens: Tensor | float | None = None
    num_sequences: Tensor | float | None = None
    world_size: int = 1
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    inside: Tensor = field(init=False, repr=False)
    num_valid: Tensor = field(init=False, repr=False)
    validate: InitVar[bool] = True

    def __post_init__(self, validate: bool) -> None:
        self._check_shapes()
        object.__setattr__(self, "inside", ones_inside(self.mask, widen(self.log_probs).dtype))
        object.__setattr__(self, "num_valid", self.inside.sum().clamp(min=1))
        for name in _PER_TOKEN:
            value = getattr(self, name)
            if value is not None:
                if name == "advantages" and value.ndim == 1:
                    value = value.unsqueeze(1).expand_as(self.mask)
                object.__setattr__(self, name, zero_outside(widen(value), self.inside))
        if self.rewards is not None:
            object.__setattr__(self, "rewards", widen(self.rewards))
        object.__setattr__(self, "extras", {name: self._own(x) for name, x in self.extras.items()})
        if self.old_log_probs is None:
            object.__setattr__(self, "old_log_probs", self.log_probs.detach())
        if validate and not is_traced():
            self._check_values()

    def _check_shapes(self) -> None:
        log_probs = check_tensor("log_probs", self.log_probs)
        if log_probs.ndim != 2:
            raise ValueError(f"log_probs: expected shape (B, T), got {tuple(log_probs.shape)}")
        b, t = log_probs.shape
        if b == 0 or t == 0:
            raise ValueError(f"log_probs: expected at least one row and one token, got shape ({b}, {t})")
        check_bool_mask("mask", self.mask, (b, t))
        for name in (*_PER_TOKEN, *_IDS, *_PER_ROW):
            value = getattr(self, name)
            if value is None:
                continue
            shape = tuple(check_tensor(name, value).shape)
            if name == "advantages" and shape not in ((b, t), (b,)):
                raise ValueError(f"advantages: expected shape (B, T) or (B,) with B={b}, T={t}, got {shape}")
            if name in _PER_ROW and shape != (b,):
                raise ValueError(f"{name}: expected shape (B,) with B={b}, got {shape}")
            if name not in _PER_ROW and name != "advantages" and shape != (b, t):
                raise ValueError(f"{name}: expected shape (B, T) with B={b}, T={t}, got {shape}")
            whole = name in _IDS or name in _ROW_IDS
            if whole == value.is_floating_point() or (whole and value.dtype == torch.bool):
                raise TypeError(f"{name}: expected {'integers' if whole else 'floats'}, got {value.dtype}")
        for name, value in self.extras.items():
            if check_tensor(f"extras[{name!r}]", value).shape[:1] != (b,):
                raise ValueError(f"extras[{name!r}]: expected {b} rows, got shape {tuple(value.shape)}")

    def _check_values(self) -> None:
        names, bad = [], []
        for name in (*_PER_TOKEN, "rewards"):
            value = getattr(self, name)
            if value is not None:
                names.append(name)
                bad.append((value.detach() * 0).sum() != 0)  # 0 times what is not finite is NaN
        if self.source is not None:
            names.append("source")
            bad.append(((self.source < ON_POLICY) | (self.source > REPLAY)).any())
        for name, is_bad in zip(names, torch.stack(bad).tolist(), strict=True):
            if is_bad and name == "source":
                raise ValueError(f"source: expected 0, 1 or 2 in every row, got {self.source}")
            if is_bad:
                where = "in every row" if name == "rewards" else "on valid tokens (mask is True)"
                raise ValueError(f"{name}: expected finite values {where}, got NaN or infinity")

    def _own(self, extra: Tensor) -> Tensor:
        """Floats of shape ``(B, T)`` among the extras are treated as the fields of that shape are."""
        return zero_outside(widen(extra), self.inside) if _like_tokens(extra, self.mask) else extra

    def require(self, part: str, *names: str) -> None:
        """Raise a ValueError that names ``part`` and the first field it lacks.

        Names may also be ``"extras.x"``, and ``"sampling_entropy"`` for ``old_entropy`` or else ``entropy``.
        """
        for name in names:
            if name.startswith("extras."):
                key = name.removeprefix("extras.")
                if key not in self.extras:
                    raise ValueError(
                        f"{part} needs TokenBatch.{name}, which is missing: pass extras={{{key!r}: ...}} with B rows"
                    )
            elif name == "sampling_entropy":
                if self.old_entropy is None and self.entropy is None:
                    raise ValueError(
                        f"{part} needs TokenBatch.{name}, which is missing: pass old_entropy=... or entropy=... of "
                        "shape (B, T)"
                    )
            elif getattr(self, name) is None:
                shape = "(B,)" if name in _PER_ROW else "(B, T)"
                raise ValueError(f"{part} needs TokenBatch.{name}, which is missing: pass {name}=... of shape {shape}")

    @property
    def sampling_entropy(self) -> Tensor:
        """``old_entropy``, or where that is missing ``entropy``; without gradient."""
        found = self.entropy if self.old_entropy is None else self.old_entropy
        if found is None:
            raise ValueError("TokenBatch.old_entropy and TokenBatch.entropy are both missing: pass one of them")
        return found.detach()

    def replace(self, **changes: Any) -> TokenBatch:
        """A copy with some fields exchanged (shapes are checked, values are not)."""
        return dataclasses.replace(self, validate=False, **changes)

    def select(self, rows: Tensor | slice) -> TokenBatch:
        """The given rows of every field, for mini-batches. Global counts stay as they are.

        >>> batch = TokenBatch(log_probs=torch.zeros(4, 2), mask=torch.ones(4, 2, dtype=torch.bool))
        >>> batch.select(slice(0, 3)).log_probs.shape
        torch.Size([3, 2])
        """
        taken = {
            name: value[rows]
            for name in (*_PER_TOKEN, *_PER_ROW, "mask", *_IDS)
            if (value := getattr(self, name)) is not None
        }
        return self.replace(**taken, extras={name: value[rows] for name, value in self.extras.items()})

    def of_sampled(self, form: Callable[[TokenBatch], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What ``form`` makes of the rows sampled for this step, by name; 0 in the rows of other sources.

        >>> batch = TokenBatch(log_probs=torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool),
        ...                    source=torch.tensor([1, 0]))
        >>> batch.of_sampled(lambda own: {"length": own.mask.sum(1)})
        {'length': tensor([0, 2])}
        """
        if self.source is None:
            return dict(form(self))
        rows = (self.source == ON_POLICY).nonzero().squeeze(1)
        found = form(self.select(rows))
        return {n: x.new_zeros(len(self.mask), *x.shape[1:]).index_copy(0, rows, x) for n, x in found.items()}

    @staticmethod
    def cat(batches: Sequence[TokenBatch]) -> TokenBatch:
        """The rows of several batches in one, padded on the right to the longest.

        A batch without ``source`` counts as :data:`ON_POLICY`. What only some of the batches have is 0 in the rows of
        the others (ids: -1, ``rollout_weights``: 1). Global counts are dropped: see :meth:`counts`.

        Raises:
            ValueError: No batch, or extras of shapes that do not fit.

        >>> one, two = (TokenBatch(log_probs=torch.zeros(1, n), mask=torch.tensor([[True] * n])) for n in (1, 2))
        >>> TokenBatch.cat([one, two.replace(source=torch.tensor([REPLAY]))]).source
        tensor([0, 2])
        """
        if not batches:
            raise ValueError("batches: expected at least one, got none")
        masks = [batch.mask for batch in batches]
        fills = {**dict.fromkeys((*_IDS, *_ROW_IDS), -1), "rollout_weights": 1, "source": ON_POLICY}
        joined: dict[str, Any] = {}
        for name in ("mask", *_PER_TOKEN, *_IDS, *_PER_ROW):
            values = [getattr(batch, name) for batch in batches]
            if any(value is not None for value in values):
                joined[name] = _cat(name, values, masks, fills.get(name, 0))
        joined["extras"] = {
            name: _cat(f"extras[{name!r}]", [batch.extras.get(name) for batch in batches], masks, 0)
            for name in dict.fromkeys(name for batch in batches for name in batch.extras)
        }
        return batches[0].replace(**joined, num_tokens=None, num_sequences=None)

    def only(self, source: int) -> TokenBatch:
        """The same rows with a mask that is empty outside one source, and that source's counts.

        >>> batch = TokenBatch(log_probs=torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool),
        ...                    source=torch.tensor([0, 1]))
        >>> batch.only(1).mask
        tensor([[False, False],
                [ True,  True]])
        """
        if self.source is None:
            mask = self.mask if source == ON_POLICY else torch.zeros_like(self.mask)
        else:
            mask = self.mask & (self.source == source).unsqueeze(1)
        counts = {name: _of_source(getattr(self, name), source) for name in ("num_tokens", "num_sequences")}
        return self.replace(mask=mask, **counts)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Numbers of valid tokens and of non-empty sequences; with a ``source``, one of each per source, ``(3,)``.

        Summed over micro-batches and ranks they are what ``num_tokens`` and ``num_sequences`` take.

        >>> batch = TokenBatch(log_probs=torch.zeros(2, 2), mask=torch.ones(2, 2, dtype=torch.bool),
        ...                    source=torch.tensor([0, 1]))
        >>> batch.counts()
        (tensor([2, 2, 0]), tensor([1, 1, 0]))
        """
        tokens = self.mask.sum(1)
        rows = (tokens > 0).to(tokens.dtype)
        if self.source is None:
            return tokens.sum(), rows.sum()
        none = tokens.new_zeros(3)
        return none.index_add(0, self.source, tokens), none.index_add(0, self.source, rows)

    @property
    def log_ratio(self) -> Tensor:
        """``log_probs - old_log_probs``, shape ``(B, T)``, 0 outside the mask."""
        assert self.old_log_probs is not None
        return self.log_probs - self.old_log_probs


def _of_source(count: Tensor | float | None, source: int) -> Tensor | float | None:
    return count[source] if isinstance(count, Tensor) and count.ndim == 1 else count


def _cat(name: str, values: Sequence[Tensor | None], masks: Sequence[Tensor], fill: float) -> Tensor:
    """One field of several batches under one another: a value per token is padded, a missing one filled up."""
    known, like = next((value, mask) for value, mask in zip(values, masks, strict=True) if value is not None)
    per_token = known.shape[:2] == like.shape
    length, tail = max(mask.shape[1] for mask in masks), known.shape[2 if per_token else 1 :]
    parts = []
    for value, mask in zip(values, masks, strict=True):
        whole = known.new_full((len(mask), *((length,) if per_token else ()), *tail), fill)
        if value is not None:
            into = whole[:, : mask.shape[1]] if per_token else whole
            if into.shape != value.shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(into.shape)}, as in other batches, got {tuple(value.shape)}"
                )
            into.copy_(value)
        parts.append(whole)
    return torch.cat(parts)


def _like_tokens(x: Tensor, mask: Tensor) -> bool:
    return x.is_floating_point() and x.shape == mask.shape


def widen(x: Tensor) -> Tensor:
    """Float32 for half precision; anything else as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Rows of earlier steps that a part hands back, see :meth:`Part.replay`.

    Attributes:
        batch: The rows, of source :data:`REPLAY`: old log-probabilities, advantages, rewards, mask. ``log_probs`` are
            the old ones until the trainer has computed those of the current policy.
        payload: What the trainer gave with each row, padded on the right with 0, by name, ``(B, W)``.
        separate: Train on these rows in optimizer steps of their own, after the others of each pass; otherwise
            together with the rows sampled for this step.
    """

    batch: TokenBatch
    payload: Mapping[str, Tensor] = field(default_factory=dict)
    separate: bool = False


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns.

    Attributes:
        loss: Scalar to be minimized.
        per_token: The values that were aggregated, shape ``(B, T)``, 0 outside the mask.
        metrics: Detached scalars for the logs.
    """

    loss: Tensor
    per_token: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
