"""A scored rollout batch as rectangles, and the token statistics of its responses under a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core import TokenStats, token_stats, token_stats_from_hidden
from infotorch.core.tokens import EXTRAS
from infotorch.losses import ON_POLICY, Replay
from infotorch.rollout import Rollouts

__all__ = ["ResponseBatch", "batch_fields", "response_stats"]


@dataclass(frozen=True)
class ResponseBatch:
    """N responses of at most T tokens.

    Attributes:
        input_ids: ``[N, S]`` prompts and responses, right-padded.
        predict_at: ``[N, T]``: position in ``input_ids`` whose output predicts response token t.
        tokens, mask: ``[N, T]`` response tokens and which of them are real.
        log_probs, entropies: ``[N, T]`` of the sampler, in nats.
        rewards: ``[N]``.
        group: int64 ``[N]``, number of the prompt.
        answer: int64 ``[N]``, equal for equal extracted answers, -1 where there is none.
        source: int64 ``[N]``, see :attr:`infotorch.losses.TokenBatch.source`; None where all are ordinary.
        rescore: Temperature, on top of the training temperature, at which the recipe wants log-probabilities, too.
    """

    input_ids: Tensor
    predict_at: Tensor
    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    entropies: Tensor
    rewards: Tensor
    group: Tensor
    answer: Tensor
    source: Tensor | None = None
    rescore: float | None = None

    @classmethod
    def from_rollouts(
        cls,
        rollouts: Rollouts,
        prompts: Sequence[Tensor],
        rewards: Tensor,
        answers: Sequence[Hashable | None],
        pad_id: int,
        source: Tensor | None = None,
        rescore: float | None = None,
    ) -> ResponseBatch:
        """Pad rollouts and put everything on their device."""
        padded = rollouts.padded(pad_id)
        input_ids, predict_at = rollouts.sequences(prompts, pad_id)
        device = input_ids.device
        return cls(
            input_ids=input_ids,
            predict_at=predict_at,
            tokens=padded.tokens,
            mask=padded.mask,
            log_probs=padded.logprobs,
            entropies=padded.entropies,
            rewards=rewards.to(device),
            group=rollouts.prompt_index.to(device),
            answer=answer_ids(answers).to(device),
            source=None if source is None else source.to(device),
            rescore=rescore,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Tensor) -> ResponseBatch:
        """The given rows."""
        rows = rows.to(self.tokens.device)
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        taken: dict[str, Any] = {name: x[rows] if isinstance(x, Tensor) else x for name, x in values.items()}
        return ResponseBatch(**taken)

    @staticmethod
    def cat(batches: Sequence[ResponseBatch], pad_id: int) -> ResponseBatch:
        """The rows of several batches under one another, padded on the right."""

        def joined(name: str) -> Any:
            values = [getattr(batch, name) for batch in batches]
            if name == "source" and any(value is not None for value in values):
                values = [b.answer.new_full((len(b),), ON_POLICY) if b.source is None else b.source for b in batches]
            if not isinstance(values[0], Tensor):
                return values[0]
            if values[0].ndim == 1:
                return torch.cat(values)
            fill = pad_id if name in ("input_ids", "tokens") else 0
            width = max(value.shape[1] for value in values)
            return torch.cat([nn.functional.pad(value, (0, width - value.shape[1]), value=fill) for value in values])

        found: dict[str, Any] = {entry.name: joined(entry.name) for entry in fields(ResponseBatch)}
        return ResponseBatch(**found)

    def payload(self) -> dict[str, list[Tensor]]:
        """What computing a row's log-probabilities takes, row by row without padding; see :meth:`from_replay`."""
        found: dict[str, list[Tensor]] = {"input_ids": [], "predict_at": [], "tokens": []}
        lengths = self.mask.sum(1).tolist()
        ends = (self.predict_at.amax(1) + 2).tolist()  # the last response token stands after its prediction
        for row, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            found["input_ids"].append(self.input_ids[row, :end])
            found["predict_at"].append(self.predict_at[row, :length])
            found["tokens"].append(self.tokens[row, :length])
        return found

    @classmethod
    def from_replay(cls, replay: Replay) -> ResponseBatch:
        """Rows that were stored with :meth:`payload`."""
        batch, rows = replay.batch, replay.payload
        assert batch.old_log_probs is not None
        assert batch.rewards is not None
        missing = torch.full_like(batch.rewards, -1, dtype=torch.long)
        return cls(
            input_ids=rows["input_ids"],
            predict_at=rows["predict_at"],
            tokens=rows["tokens"],
            mask=batch.mask,
            log_probs=batch.old_log_probs,
            entropies=torch.zeros_like(batch.old_log_probs),
            rewards=batch.rewards,
            group=missing,
            answer=missing,
            source=batch.source,
        )


def answer_ids(answers: Sequence[Hashable | None]) -> Tensor:
    """Number answers in the order in which they appear; None is -1.

    >>> answer_ids(["7", None, "3", "7"])
    tensor([ 0, -1,  1,  0])
    """
    numbers: dict[Hashable, int] = {}
    return torch.tensor([-1 if a is None else numbers.setdefault(a, len(numbers)) for a in answers], dtype=torch.long)


def response_stats(
    model: nn.Module, batch: ResponseBatch, *, temperature: float = 1.0, fused_head: bool = False, **options: Any
) -> TokenStats:
    """Token statistics ``[N, T]`` (nats, with gradient) of the responses, 0 outside the mask.

    Args:
        model: Causal language model.
        batch: The responses.
        temperature: Divides the logits.
        fused_head: Use ``model.base_model`` and the output weight instead of logits: the ``[N, V]`` logits never
            exist. Right only where logits are exactly ``hidden @ weight.T + bias``.
        **options: Further options of :func:`infotorch.core.token_stats`, such as ``extras``.

    Raises:
        ValueError: If ``fused_head`` is set and the model does not expose hidden states and a linear head.
    """
    row, column = batch.mask.nonzero(as_tuple=True)
    at, labels = batch.predict_at[row, column], batch.tokens[row, column]
    # Right padding: a causal model needs no attention mask, since no real position sees the padding.
    if fused_head:
        flat = _fused_stats(model, batch.input_ids, row, at, labels, temperature, options)
    else:
        logits = model(batch.input_ids).logits
        flat = token_stats(logits[row, at], labels, temperature=temperature, **options)
    return each(flat, lambda x: x.new_zeros(batch.mask.shape).index_put((row, column), x))


def concatenate(parts: Sequence[TokenStats]) -> TokenStats:
    """Statistics of several batches of rows as one."""
    values = {entry.name: [getattr(part, entry.name) for part in parts] for entry in fields(TokenStats)}
    joined: dict[str, Any] = {name: None if v[0] is None else torch.cat(v) for name, v in values.items()}
    return TokenStats(**joined)


def batch_fields(stats: TokenStats, extras: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Token statistics as fields of a `TokenBatch`; those that are no field of it are added to ``extras``."""
    named = {"log_probs": stats.log_probs, "entropy": stats.entropy, "top_p_entropy": stats.top_p_entropy}
    further = {name: getattr(stats, name) for name in EXTRAS if name not in named}
    return {**named, "extras": {**(extras or {}), **{name: x for name, x in further.items() if x is not None}}}


def each(stats: TokenStats, function: Callable[[Tensor], Tensor]) -> TokenStats:
    """Apply a function to every statistic that is there."""
    values = {entry.name: getattr(stats, entry.name) for entry in fields(stats)}
    mapped: dict[str, Any] = {name: None if value is None else function(value) for name, value in values.items()}
    return TokenStats(**mapped)


def _fused_stats(
    model: nn.Module,
    input_ids: Tensor,
    row: Tensor,
    at: Tensor,
    labels: Tensor,
    temperature: float,
    options: Mapping[str, Any],
) -> TokenStats:
    backbone = getattr(model, "base_model", None)
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    if not isinstance(backbone, nn.Module) or backbone is model or not isinstance(head, nn.Linear):
        raise ValueError(
            "fused_head: expected a model with base_model (tokens to hidden states) and a linear output head, "
            f"got {type(model).__name__}; use fused_head=False"
        )
    hidden = backbone(input_ids).last_hidden_state[row, at]
    return token_stats_from_hidden(hidden, head.weight, labels, bias=head.bias, temperature=temperature, **options)
