"""What a sampler returns: `Rollouts` (ragged, one row per sample) and its padded form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["EntropyKind", "PaddedRollouts", "Rollouts"]

_LISTS = ("tokens", "logprobs", "entropies", "finish_reason")
_NUMBERS = ("prompt_index", "n_new_tokens", "n_prefill_tokens", "n_prefill_cached")
EntropyKind = Literal["full", "topk_tail", "topk_raw"]


@dataclass(frozen=True)
class PaddedRollouts:
    """Rollouts as rectangles ``[N, T]``: ``tokens`` (int64), ``mask`` (bool), ``logprobs``, ``entropies``.

    Outside the mask ``tokens`` holds the padding id and the float fields hold 0.
    """

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    entropies: Tensor


@dataclass(frozen=True)
class Rollouts:
    """Samples of a language model, flat and ragged; rows of one prompt are adjacent and in sample order.

    Attributes:
        tokens: N int64 tensors ``[L_r]``: new tokens only, including the stop token when one was produced.
        logprobs: N float32 tensors ``[L_r]``: log-probability in nats of each token under the distribution
            sampled from, after temperature and before top-p / top-k truncation (temperature 1 when greedy).
        entropies: N float32 tensors ``[L_r]``: entropy in nats of that distribution; entry t belongs to the
            distribution that produced ``tokens[t]``.
        entropy_kind: ``"full"``: exact; ``"topk_tail"`` / ``"topk_raw"``: from the K best log-probabilities.
        finish_reason: N strings, ``"stop"`` or ``"length"`` (the budget ran out).
        prompt_index: int64 ``[N]``: position of the row's prompt in the call.
        n_new_tokens: int64 ``[N]``: tokens decoded for the row.
        n_prefill_tokens: int64 ``[N]``: tokens fed without being sampled.
        n_prefill_cached: int64 ``[N]``: the part of ``n_prefill_tokens`` that was served from a cache.
        hidden_last: float ``[P, D]`` or None: final hidden state at the last token of each prompt.
    """

    tokens: list[Tensor]
    logprobs: list[Tensor]
    entropies: list[Tensor]
    finish_reason: list[str]
    prompt_index: Tensor
    n_new_tokens: Tensor
    n_prefill_tokens: Tensor
    n_prefill_cached: Tensor
    entropy_kind: EntropyKind = "full"
    hidden_last: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def join(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """The rows of several calls, one call after another; ``hidden_last`` is that of the first.

        ``prompt_index`` is kept as it is: set it beforehand where the calls had different prompts.

        Raises:
            ValueError: Entropies of different kinds.
        """
        kinds = {part.entropy_kind for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"parts: expected entropies of one kind, got {sorted(kinds)}")
        lists: dict[str, Any] = {name: [row for part in parts for row in getattr(part, name)] for name in _LISTS}
        numbers: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in _NUMBERS}
        return cls(**lists, **numbers, entropy_kind=parts[0].entropy_kind, hidden_last=parts[0].hidden_last)

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each row, int64 ``[N]``."""
        return torch.tensor([len(row) for row in self.tokens], dtype=torch.long)

    @property
    def new_tokens(self) -> int:
        """Tokens decoded in the whole call (the figure papers call the token budget)."""
        return int(self.n_new_tokens.sum())

    @property
    def prefill_tokens(self) -> int:
        """Tokens fed without being sampled, computed or cached, in the whole call."""
        return int(self.n_prefill_tokens.sum())

    @property
    def prefill_cached(self) -> int:
        """The part of `prefill_tokens` that was served from a cache."""
        return int(self.n_prefill_cached.sum())

    def padded(self, pad_id: int, length: int | None = None) -> PaddedRollouts:
        """Right-pad all rows to the longest one, or to ``length``.

        Args:
            pad_id: Token id written outside the mask.
            length: Number of columns; at least the longest row.

        Raises:
            ValueError: If ``length`` is shorter than a row.

        Example:
            >>> one, two = torch.tensor([5]), torch.tensor([6, 7])
            >>> rows = Rollouts([one, two], [-one.float(), -two.float()], [one.float(), two.float()],
            ...     ["stop", "length"], torch.tensor([0, 0]), *[torch.tensor([1, 2])] * 3)
            >>> rows.padded(pad_id=0).tokens
            tensor([[5, 0],
                    [6, 7]])
        """
        lengths = self.lengths
        longest = int(lengths.max()) if len(self) else 0
        width = longest if length is None else length
        if width < longest:
            raise ValueError(f"length: expected at least the longest row ({longest}), got {width}")
        device = self.tokens[0].device if len(self) else torch.device("cpu")
        mask = (torch.arange(width) < lengths[:, None]).to(device)

        def fill(rows: Sequence[Tensor], value: float, dtype: torch.dtype) -> Tensor:
            out = torch.full((len(rows), width), value, dtype=dtype, device=device)
            if len(rows):
                out[mask] = torch.cat(list(rows)).to(dtype)
            return out

        return PaddedRollouts(
            tokens=fill(self.tokens, pad_id, torch.long),
            mask=mask,
            logprobs=fill(self.logprobs, 0.0, torch.float32),
            entropies=fill(self.entropies, 0.0, torch.float32),
        )

    def sequences(self, prompts: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
        """Prompt + response of every row, right-padded, and where its responses are predicted.

        Right padding needs no attention mask under causal attention, so a training forward pass over
        ``input_ids`` may use the fastest attention path.

        Args:
            prompts: The prompts of the call that made these rollouts.
            pad_id: Padding token id.

        Returns:
            ``input_ids [N, S]`` and ``predict_at [N, T]``: the output at position ``predict_at[r, t]`` is the
            distribution of response token t of row r (padded rows point at their last valid position).
        """
        which = self.prompt_index.tolist()
        device = self.tokens[0].device
        rows = [torch.cat((prompts[p].to(device), row)) for p, row in zip(which, self.tokens, strict=True)]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
        starts = torch.tensor([len(prompts[p]) - 1 for p in which])[:, None]
        lengths = self.lengths[:, None]
        steps = torch.arange(int(lengths.max()))[None, :]
        return input_ids, (starts + torch.minimum(steps, lengths - 1)).to(device)
