"""Samplers: the engine-independent contract and a batched back-end for transformers-style models.

A `Sampler` turns ragged prompts into `Rollouts`: tokens with the log-probability and the entropy (nats) of the
distribution each one was drawn from. `HFSampler` drives any causal language model with the transformers interface
(and `infotorch.nn.TinyDecoder`): one prefill per prompt shared by its samples, a key-value cache, and a running
batch from which finished rows are dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from infotorch.core import token_stats
from infotorch.rollout.draw import draw_tokens, truncate
from infotorch.rollout.random import hash_uniform
from infotorch.rollout.records import Rollouts

__all__ = ["HFSampler", "Sampler"]

Temperatures = Callable[[Tensor], Tensor]


@runtime_checkable
class Sampler(Protocol):
    """What every generation engine offers; the training loop and the tree samplers rely on nothing else.

    ``capabilities`` is a subset of ``{"full_entropy", "topk_logprobs", "hidden_last", "prefix_reuse",
    "stop_strings", "temperatures"}``; the last one means that ``temperature`` may also be a function from the logits
    ``[N, V]`` of a decoding step to temperatures ``[N]``. Same seed, same inputs and same engine give the same tokens.
    """

    capabilities: frozenset[str]

    def generate(
        self,
        prompts: Sequence[Tensor],
        n: int | Sequence[int] = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        max_new_tokens: int | Sequence[int] = 32,
        stop: Sequence[str] = (),
        seed: int | None = None,
        return_hidden: bool = False,
    ) -> Rollouts:
        """Sample ``n`` continuations of each prompt."""
        ...


@dataclass
class _Running:
    """State of the rows that still decode: their number in the output, budget and random key."""

    row: Tensor
    budget: Tensor
    prompt_key: Tensor
    sample_key: Tensor
    mask: Tensor | None  # [rows, prompt + steps] attention mask; None when no prompt is padded
    position: Tensor  # position of the next token
    logits: Tensor

    def keep(self, index: Tensor) -> None:
        for name in ("row", "budget", "prompt_key", "sample_key", "position", "mask"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[index])


@dataclass
class HFSampler:
    """Batched sampling from a causal language model with the transformers interface.

    Random numbers are hashes of ``(seed, prompt id, sample index, step)``: a row's tokens do not depend on
    the rest of the batch (up to the rounding of the model's own matrix products), so that sampling in several
    processes, each with its share of the prompts and their global ids, equals sampling in one.

    Args:
        model: Causal language model; it is put in evaluation mode while sampling and restored afterwards.
        pad_token_id: Token used for padding; it may equal a stop token.
        stop_token_ids: A row ends after one of these tokens (which is kept).
        decode: Turns a list of token ids into text; only needed for stop strings.
        compact_fraction: Drop finished rows from the running batch once they are at least this share of it.

    Example:
        >>> from infotorch.nn import TinyDecoder
        >>> model = TinyDecoder(vocab_size=5, dim=8, layers=1, heads=2, max_length=16, seed=0)
        >>> sampler = HFSampler(model, pad_token_id=0, stop_token_ids={1})
        >>> prompts = [torch.tensor([2, 3]), torch.tensor([4])]
        >>> rollouts = sampler.generate(prompts, n=3, max_new_tokens=6, seed=0)
        >>> len(rollouts), rollouts.prompt_index.tolist()
        (6, [0, 0, 0, 1, 1, 1])
    """

    model: nn.Module
    pad_token_id: int
    stop_token_ids: Iterable[int] = ()
    decode: Callable[[list[int]], str] | None = None
    compact_fraction: float = 0.125
    capabilities: frozenset[str] = field(
        default=frozenset({"full_entropy", "hidden_last", "stop_strings", "temperatures"}), init=False
    )

    def __post_init__(self) -> None:
        self.stop_token_ids = frozenset(int(token) for token in self.stop_token_ids)
        if not 0.0 <= self.compact_fraction <= 1.0:
            raise ValueError(f"compact_fraction: expected a number in [0, 1], got {self.compact_fraction}")
        parameters = inspect.signature(self.model.forward).parameters
        self._prefill_options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Tensor],
        n: int | Sequence[int] = 1,
        *,
        temperature: float | Temperatures = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        max_new_tokens: int | Sequence[int] = 32,
        stop: Sequence[str] = (),
        seed: int | None = None,
        return_hidden: bool = False,
        prompt_ids: Sequence[int] | Tensor | None = None,
    ) -> Rollouts:
        """Sample continuations.

        Args:
            prompts: Ragged 1-D int64 tensors without padding; a prompt may contain a generated prefix.
            n: Samples per prompt, one number or one per prompt.
            temperature: Divides the logits; 0 takes the most likely token. Or a function from the undivided float32
                logits ``[N, V]`` of a decoding step to positive temperatures ``[N]`` (before top-p and top-k).
            top_p: Nucleus mass in (0, 1].
            top_k: Number of most likely tokens to sample from; -1 for all.
            max_new_tokens: Token budget per row, one number or one per prompt.
            stop: A row also ends when its text contains one of these strings (needs ``decode``).
            seed: Seed of the draws; None takes one from torch's global generator.
            return_hidden: Also return the final hidden state at the last token of each prompt.
            prompt_ids: Integer id of each prompt in the random hash (default: its position). Data-parallel
                ranks pass global positions.

        Returns:
            `Rollouts` with exact entropies (``entropy_kind="full"``); all tensors on the model's device except
            the accounting, which is on the CPU. Samples after the first one of a prompt count its tokens as
            cached prefill.

        Raises:
            ValueError: On empty prompts, options out of range, lists of the wrong length, or stop strings without
                ``decode``.
        """
        _check_options(prompts, temperature, top_p, top_k)
        if stop and self.decode is None:
            raise ValueError("stop: stop strings need HFSampler(decode=...), a function from token ids to text")
        counts = _per_prompt("n", n, len(prompts))
        budgets = _per_prompt("max_new_tokens", max_new_tokens, len(prompts))
        if prompt_ids is None:
            prompt_ids = range(len(prompts))
        elif len(prompt_ids) != len(prompts):
            raise ValueError(f"prompt_ids: expected one per prompt ({len(prompts)}), got {len(prompt_ids)}")
        if seed is None:
            seed = int(torch.randint(2**62, ()))

        training = self.model.training
        self.model.eval()
        try:
            running, cache, hidden = self._prefill(prompts, counts, budgets, prompt_ids, return_hidden)
            tokens, logprobs, entropies, lengths, stopped = self._decode_rows(
                running, cache, seed, temperature, top_p, top_k, max(budgets), stop
            )
        finally:
            self.model.train(training)

        prompt_index = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts))
        prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])[prompt_index]
        first = torch.cat([torch.arange(count) == 0 for count in counts])
        ends = lengths.tolist()
        return Rollouts(
            tokens=[row[:end] for row, end in zip(tokens, ends, strict=True)],
            logprobs=[row[:end] for row, end in zip(logprobs, ends, strict=True)],
            entropies=[row[:end] for row, end in zip(entropies, ends, strict=True)],
            finish_reason=["stop" if s else "length" for s in stopped.tolist()],
            prompt_index=prompt_index,
            n_new_tokens=lengths.cpu(),
            n_prefill_tokens=prompt_lengths,
            n_prefill_cached=torch.where(first, 0, prompt_lengths),
            hidden_last=hidden,
        )

    def _prefill(
        self,
        prompts: Sequence[Tensor],
        counts: list[int],
        budgets: list[int],
        prompt_ids: Sequence[int] | Tensor,
        return_hidden: bool,
    ) -> tuple[_Running, Any, Tensor | None]:
        """One forward pass over the left-padded prompts, then one cache row per sample."""
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        width = int(lengths.max())
        input_ids = torch.full((len(prompts), width), self.pad_token_id, device=device)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = prompt.to(device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        padded = bool((lengths != width).any())
        options: dict[str, Any] = dict(self._prefill_options)
        if return_hidden:
            options["output_hidden_states"] = True
        output = self.model(
            input_ids,
            attention_mask=mask if padded else None,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=True,
            **options,
        )
        hidden = output.hidden_states[-1][:, -1] if return_hidden else None
        repeats = torch.tensor(counts, device=device)
        source = torch.repeat_interleave(torch.arange(len(prompts), device=device), repeats)
        cache = output.past_key_values
        ids = prompt_ids if isinstance(prompt_ids, Tensor) else torch.tensor(list(prompt_ids))
        ids = ids.to(device=device, dtype=torch.long)
        if max(counts) > 1:
            cache.batch_select_indices(source)
        running = _Running(
            row=torch.arange(len(source), device=device),
            budget=torch.tensor(budgets, device=device)[source],
            prompt_key=ids[source],
            sample_key=torch.cat([torch.arange(count, device=device) for count in counts]),
            mask=mask[source] if padded else None,
            position=lengths[source],
            logits=output.logits[source, -1],
        )
        if running.mask is not None:
            ones = running.mask.new_ones(len(source), max(budgets))
            running.mask = torch.cat((running.mask, ones), dim=1)
        return running, cache, hidden

    def _decode_rows(
        self,
        running: _Running,
        cache: Any,
        seed: int,
        temperature: float | Temperatures,
        top_p: float,
        top_k: int,
        steps: int,
        stop: Sequence[str],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        device, rows = running.logits.device, len(running.row)
        tokens = torch.full((rows, steps), self.pad_token_id, device=device)
        logprobs = torch.zeros(rows, steps, device=device)
        entropies = torch.zeros(rows, steps, device=device)
        lengths = torch.zeros(rows, dtype=torch.long, device=device)
        stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        stop_tokens = torch.tensor(sorted(self.stop_token_ids), dtype=torch.long, device=device)
        alive = torch.ones(rows, dtype=torch.bool, device=device)  # of the running rows
        scale = 1.0 if callable(temperature) or temperature == 0 else temperature
        prompt_width = cache.get_seq_length()

        for step in range(steps):
            logits = running.logits.float()
            if callable(temperature):
                logits = logits / temperature(logits).unsqueeze(-1)
            stats = token_stats(logits, temperature=scale)
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                probs = (logits / scale - stats.log_normalizer[:, None]).exp()
                uniforms = hash_uniform(seed, running.prompt_key, running.sample_key, step)
                token = draw_tokens(truncate(probs, top_p=top_p, top_k=top_k), uniforms)
            chosen = logits.gather(1, token[:, None]).squeeze(1) / scale - stats.log_normalizer
            at = running.row[alive]
            tokens[at, step], logprobs[at, step] = token[alive], chosen[alive]
            entropies[at, step] = stats.entropy[alive]
            lengths[at] += 1

            hit = torch.isin(token, stop_tokens)
            if stop:
                hit |= self._text_stops(tokens, running.row, alive, step, stop)
            stopped[running.row[alive & hit]] = True
            alive = alive & ~hit & (running.budget > step + 1)
            remaining = int(alive.sum())
            if remaining == 0:
                break
            if len(alive) - remaining >= max(1.0, self.compact_fraction * len(alive)):
                index = alive.nonzero().squeeze(1)
                cache.batch_select_indices(index)
                running.keep(index)
                token, alive = token[index], alive[index]
            mask = None if running.mask is None else running.mask[:, : prompt_width + step + 1]
            output = self.model(
                token[:, None],
                attention_mask=mask,
                position_ids=running.position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            running.logits = output.logits[:, -1]
            running.position = running.position + 1
        return tokens, logprobs, entropies, lengths, stopped

    def _text_stops(self, tokens: Tensor, rows: Tensor, alive: Tensor, step: int, stop: Sequence[str]) -> Tensor:
        """Which running rows now contain a stop string (decoded as a whole: tokens may split characters)."""
        assert self.decode is not None
        found = [
            live and any(text in self.decode(tokens[row, : step + 1].tolist()) for text in stop)
            for row, live in zip(rows.tolist(), alive.tolist(), strict=True)
        ]
        return torch.tensor(found, device=alive.device)


def _per_prompt(name: str, value: int | Sequence[int], prompts: int) -> list[int]:
    values = [value] * prompts if isinstance(value, int) else [int(v) for v in value]
    if len(values) != prompts:
        raise ValueError(f"{name}: expected one number or one per prompt ({prompts}), got {len(values)} numbers")
    if min(values) < 1:
        raise ValueError(f"{name}: expected positive integers, got {min(values)}")
    return values


def _check_options(prompts: Sequence[Tensor], temperature: float | Temperatures, top_p: float, top_k: int) -> None:
    if not len(prompts):
        raise ValueError("prompts: expected at least one prompt, got an empty list")
    for index, prompt in enumerate(prompts):
        if prompt.ndim != 1 or not len(prompt) or prompt.is_floating_point():
            raise ValueError(
                f"prompts: expected non-empty 1-D integer tensors, prompt {index} has shape {tuple(prompt.shape)} "
                f"and dtype {prompt.dtype}"
            )
    if not callable(temperature) and not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature: expected a finite number >= 0 (0 is greedy), got {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    if top_k == 0 or top_k < -1:
        raise ValueError(f"top_k: expected a positive integer, or -1 for all tokens, got {top_k}")
