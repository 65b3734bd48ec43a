"""Where to branch a response, as pure functions of entropies and tokens; and how a branch's prompt is put together.

"Branch at t" keeps ``response[:t]`` and samples token t again. ETTRL forks at the positions of highest entropy, CURE
at one drawn among the most uncertain words. Everything is vectorized over responses.

References:
    "ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning Via Entropy Mechanism",
    2025, arXiv:2508.11356.
    "CURE: Critical-Token-Guided Re-Concatenation for Entropy-Collapse Prevention", 2025, arXiv:2508.11016.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.rollout.draw import draw_tokens

__all__ = [
    "ForkCosts",
    "Reconcatenated",
    "allowed_tokens",
    "critical_positions",
    "draw_position",
    "fork_costs",
    "fork_positions",
    "reconcatenate",
]


def _highest_first(score: Tensor, eligible: Tensor) -> Tensor:
    """Positions of each row in descending order of score, ties by index; those that are not eligible come last."""
    order = torch.where(eligible, -score, torch.inf).sort(dim=1, stable=True).indices
    # Eligible ones come first even where a score is -inf: a second stable sort, by eligibility.
    return order.gather(1, (~eligible).gather(1, order).to(torch.uint8).sort(dim=1, stable=True).indices)


def fork_positions(entropy: Tensor, mask: Tensor, forks: int = 2, *, min_distance: int = 0) -> Tensor:
    """ETTRL's fork positions: the valid tokens of highest entropy in each response.

    Args:
        entropy: Token entropies in nats, shape ``(M, T)``. What is NaN is never chosen.
        mask: Valid tokens, boolean, ``(M, T)``.
        forks: Positions per response, N.
        min_distance: Least distance between two of them, by taking the highest entropy first; 0 is the paper, and may
            spend all forks on a few neighboring tokens.

    Returns:
        int64 ``(M, N)``, ascending, -1 behind the last where a response has fewer valid tokens. Ties go to the lower
        index.

    Raises:
        ValueError: A mask of another shape, a negative count or distance.
        TypeError: A mask that is not boolean.

    Reference: 2025, arXiv:2508.11356.

    Example:
        >>> entropy = torch.tensor([[0.1, 2.0, 1.9, 0.3, 1.0]])
        >>> mask = torch.ones(1, 5, dtype=torch.bool)
        >>> fork_positions(entropy, mask).tolist(), fork_positions(entropy, mask, min_distance=2).tolist()
        ([[1, 2]], [[1, 4]])
    """
    check_bool_mask("mask", mask, entropy.shape)
    check_range("forks", forks, 0)
    check_range("min_distance", min_distance, 0)
    places = torch.arange(entropy.shape[1], device=entropy.device)
    free = mask & ~entropy.isnan()
    none = entropy.shape[1]
    found = []
    for _ in range(forks):
        best = _highest_first(entropy, free)[:, :1]
        found.append(torch.where(free.any(1, keepdim=True), best, none))
        free = free & ((places - best).abs() >= max(1, min_distance))
    if not found:
        return torch.empty(len(entropy), 0, dtype=torch.long, device=entropy.device)
    ordered = torch.cat(found, 1).sort(1).values
    return torch.where(ordered == none, -1, ordered)


class ForkCosts(NamedTuple):
    """Sizes of the trees that grow from given fork positions.

    Attributes:
        rollouts: Responses: one root per row and its branches.
        planned_rollouts: The same if every root were long enough, ``M (1 + N B)``.
        kept_prefix_tokens: Tokens that branches take over from their roots.
        uniform_token_ratio: Expected share of the tokens that so many independent samples would cost, were forks
            uniform over a response: ``(1 + N B / 2) / (1 + N B)``.
    """

    rollouts: int
    planned_rollouts: int
    kept_prefix_tokens: int
    uniform_token_ratio: float


def fork_costs(positions: Tensor, branches: int = 2) -> ForkCosts:
    """Count responses and reused tokens of trees.

    Args:
        positions: What :func:`fork_positions` returned, ``(M, N)``.
        branches: Continuations per fork, B.

    Raises:
        ValueError: Negative ``branches``.

    Example:
        >>> fork_costs(torch.tensor([[1, 4], [2, -1]]), branches=2)
        ForkCosts(rollouts=8, planned_rollouts=10, kept_prefix_tokens=14, uniform_token_ratio=0.6)
    """
    check_range("branches", branches, 0)
    roots, forks = positions.shape
    used = positions >= 0
    extra = branches * forks
    return ForkCosts(
        rollouts=roots + branches * int(used.sum()),
        planned_rollouts=roots * (1 + extra),
        kept_prefix_tokens=branches * int(positions.clamp(min=0).sum()),
        uniform_token_ratio=(1 + extra / 2) / (1 + extra),
    )


def allowed_tokens(texts: Sequence[str], special_ids: Iterable[int] = (), *, min_chars: int = 2) -> Tensor:
    r"""CURE's filter as a table: tokens that are not special and have enough characters once stripped of white space.

    Args:
        texts: Text of every token of the vocabulary, each decoded by itself.
        special_ids: Tokens that are never critical (end, padding ...).
        min_chars: Least number of characters; CURE's code asks for 2. For a vocabulary of single characters use 1, and
            name separators among the special tokens.

    Returns:
        Boolean ``(V,)``.

    Raises:
        ValueError: A special token outside the vocabulary.

    Example:
        >>> allowed_tokens(["<eos>", " the", " a", "\n"], special_ids=[0])
        tensor([False,  True, False, False])
    """
    table = torch.tensor([len(text.strip()) >= min_chars for text in texts], dtype=torch.bool)
    for token in special_ids:
        check_range("special_ids", token, 0, len(texts) - 1)
        table[token] = False
    return table


def critical_positions(
    entropy: Tensor,
    tokens: Tensor,
    mask: Tensor,
    allowed: Tensor,
    *,
    top_k: int = 20,
    mode: str = "entropy",
    generator: torch.Generator | None = None,
) -> Tensor:
    """CURE's candidates: the allowed tokens of highest entropy in each response, never its first token.

    Args:
        entropy: Token entropies in nats under the trainer's own model, shape ``(B, T)``. What is NaN is no candidate.
        tokens: Response tokens, ``(B, T)``.
        mask: Valid tokens, boolean, ``(B, T)``.
        allowed: Table over the vocabulary, see :func:`allowed_tokens`.
        top_k: Candidates per response.
        mode: ``"entropy"``, or the control ``"random"``: allowed positions in random order.
        generator: For ``mode="random"``.

    Returns:
        int64 ``(B, top_k)``, highest entropy first (ties: lower index), -1 behind the last.

    Raises:
        ValueError: Shapes that differ, ``top_k`` below 1, an unknown mode.
        TypeError: A mask or table that is not boolean.

    Reference: 2025, arXiv:2508.11016.

    Example:
        >>> entropy, tokens = torch.tensor([[3.0, 0.5, 2.0, 1.0]]), torch.tensor([[1, 1, 0, 1]])
        >>> critical_positions(entropy, tokens, tokens >= 0, torch.tensor([False, True]), top_k=3)
        tensor([[ 3,  1, -1]])
    """
    check_bool_mask("mask", mask, entropy.shape)
    check_bool_mask("allowed", allowed)
    check_range("top_k", top_k, 1)
    check_choice("mode", mode, ("entropy", "random"))
    if tokens.shape != entropy.shape:
        raise ValueError(f"tokens: expected shape {tuple(entropy.shape)}, as entropy has, got {tuple(tokens.shape)}")
    candidates = mask & allowed.to(tokens.device)[torch.where(mask, tokens, 0)] & ~entropy.isnan()
    candidates[:, 0] = False
    if mode == "random":
        entropy = torch.rand(entropy.shape, generator=generator, device=entropy.device)
    order = _highest_first(entropy, candidates)
    place = torch.arange(entropy.shape[1], device=entropy.device)
    found = torch.where(place < candidates.sum(1, keepdim=True), order, -1)[:, :top_k]
    return torch.nn.functional.pad(found, (0, max(0, top_k - found.shape[1])), value=-1)


def draw_position(candidates: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One of each row's candidates, drawn uniformly; 0, a fresh response, where there is none.

    Args:
        candidates: What :func:`critical_positions` returned, ``(B, K)``.
        generator: Source of the draw.

    Returns:
        int64 ``(B,)``.

    Example:
        >>> draw_position(torch.tensor([[7, -1, -1], [-1, -1, -1]]))
        tensor([7, 0])
    """
    valid = candidates >= 0
    uniforms = torch.rand(len(candidates), generator=generator, device=candidates.device)
    drawn = draw_tokens(valid.float(), uniforms).clamp(max=candidates.shape[1] - 1)
    return torch.where(valid.any(1), candidates.gather(1, drawn.unsqueeze(1)).squeeze(1), 0)


class Reconcatenated(NamedTuple):
    """Left-padded prompts of branches.

    Attributes:
        input_ids: int64 ``(B, P)``.
        attention_mask: int64 ``(B, P)``: 1 on tokens.
        position_ids: int64 ``(B, P)``: from 0 at the first token, 0 on padding.
        kept: int64 ``(B,)``: response tokens that are in the prompt; less than asked for where P cut it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    kept: Tensor


def reconcatenate(
    prompts: Tensor, prompt_mask: Tensor, responses: Tensor, at: Tensor, *, width: int, pad_id: int
) -> Reconcatenated:
    """CURE's branch prompts: prompt and ``response[:at]``, cut to the first ``width`` tokens, padded on the left.

    Args:
        prompts: Left-padded prompts, ``(B, W)``.
        prompt_mask: Which of these tokens are real, boolean, ``(B, W)``; padding is not recognized by its id, which
            may be a real token's too.
        responses: Response tokens, ``(B, T)``.
        at: Tokens to keep of each response, ``(B,)``; the token at this place is drawn again.
        width: Length of the result. Longer ones lose their end: the cut moves to an earlier place.
        pad_id: Padding token.

    Raises:
        ValueError: Numbers of rows that differ, ``width`` below 1, a prompt that is not padded on the left, ``at``
            outside the responses.
        TypeError: A mask that is not boolean.

    Reference: 2025, arXiv:2508.11016.

    Example:
        >>> found = reconcatenate(torch.tensor([[0, 5, 6]]), torch.tensor([[False, True, True]]),
        ...                       torch.tensor([[7, 8, 9]]), torch.tensor([2]), width=5, pad_id=0)
        >>> found.input_ids, found.position_ids
        (tensor([[0, 5, 6, 7, 8]]), tensor([[0, 0, 1, 2, 3]]))
    """
    check_bool_mask("prompt_mask", prompt_mask, prompts.shape)
    check_range("width", width, 1)
    if not len(prompts) == len(responses) == len(at):
        raise ValueError(f"at: expected one per row of prompts and responses ({len(prompts)}), got {len(at)}")
    if bool((prompt_mask[:, :-1] & ~prompt_mask[:, 1:]).any()):
        raise ValueError("prompt_mask: expected padding on the left only, got a gap or padding on the right")
    if bool(((at < 0) | (at > responses.shape[1])).any()):
        raise ValueError(f"at: expected positions in [0, {responses.shape[1]}], got {at.tolist()}")
    given = prompt_mask.sum(1, keepdim=True)
    total = (given + at.unsqueeze(1)).clamp(max=width)
    place = torch.arange(width, device=prompts.device) - (width - total)  # in prompt ++ response; negative on padding
    both = torch.cat((prompts, responses), 1)
    source = (place + prompts.shape[1] - given).clamp(0, both.shape[1] - 1)
    real = place >= 0
    return Reconcatenated(
        input_ids=torch.where(real, both.gather(1, source), pad_id),
        attention_mask=real.long(),
        position_ids=place.clamp(min=0),
        kept=(total - given).clamp(min=0).squeeze(1),
    )
