"""ModularSum: a verifiable task so small that its policy is a table and its entropy is exact.

A response has L tokens out of V; token values and position weights are random, and the state at position t is the
running sum ``s_t = sum_{u<t} weight_u value[y_u] mod M``. The answer is right when the final sum equals the prompt's
target and ``y_0 mod 3 == prompt mod 3``, so each prompt has very many correct answers. The policy is a table of logits
``W[P, L, M, V]``. A run of a policy-optimization method takes seconds, which makes its effect on entropy cheap to
measure over many settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["ModularSum", "TabularPolicy"]


class ModularSum:
    """The task: states, rewards and counts of token tensors ``[P, n, L]``.

    Args:
        prompts: Number of prompts ``P``.
        length: Tokens per response ``L``.
        vocab: Tokens ``V``.
        modulus: ``M``.
        decisions: Positions that enter the sum; None means all. At every other position token 0 is the only right
            one (any other makes the answer wrong), which models the low-entropy tokens between two decisions.
        useful: Only the first so many tokens may occur in a right answer; None means all. The rest models what a
            large vocabulary holds besides the words that matter.
        seed: Seed of values, weights and targets.

    Raises:
        ValueError: If a size is out of range or a decision lies outside the response.

    Example:
        >>> task = ModularSum(prompts=2, length=3, seed=0)
        >>> task.reward(torch.zeros(2, 5, 3, dtype=torch.long)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        prompts: int = 16,
        length: int = 6,
        vocab: int = 12,
        modulus: int = 7,
        *,
        decisions: Sequence[int] | None = None,
        useful: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in {"prompts": prompts, "length": length, "vocab": vocab, "modulus": modulus}.items():
            if value < 2:
                raise ValueError(f"{name}: expected an integer >= 2, got {value}")
        chosen = range(length) if decisions is None else decisions
        if not len(chosen) or any(not 0 <= position < length for position in chosen):
            raise ValueError(f"decisions: expected positions in 0..{length - 1}, got {list(chosen)}")
        useful = vocab if useful is None else useful
        if not 2 <= useful <= vocab:
            raise ValueError(f"useful: expected an integer in 2..{vocab} (the vocabulary), got {useful}")
        generator = torch.Generator().manual_seed(seed)
        self.prompts, self.length, self.vocab, self.modulus = prompts, length, vocab, modulus
        self.useful = useful
        self.decides = torch.zeros(length, dtype=torch.bool)
        self.decides[list(chosen)] = True
        values = torch.randint(modulus, (useful,), generator=generator)
        self.values = nn.functional.pad(values, (0, vocab - useful))
        self.weights = torch.randint(1, modulus, (length,), generator=generator)
        self.targets = torch.randint(modulus, (prompts,), generator=generator)
        # Contribution of token v at position t to the sum, [L, V].
        self.contribution = torch.where(self.decides[:, None], self.weights[:, None] * self.values, 0) % modulus

    def states(self, tokens: Tensor) -> Tensor:
        """Running sums before each token and after the last: ``[..., L]`` to ``[..., L + 1]``."""
        added = self.contribution[torch.arange(self.length), tokens]
        return nn.functional.pad(added.cumsum(-1), (1, 0)) % self.modulus

    def reward(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """1 for correct responses, else 0: ``[P, n, L]`` to float ``[P, n]``; ``prompts`` numbers the P prompts."""
        prompt = torch.arange(self.prompts) if prompts is None else prompts
        right = self.states(tokens)[..., -1] == self.targets[prompt, None]
        right &= tokens[..., 0] % 3 == prompt[:, None] % 3
        return (right & self._allowed(tokens)).float()

    def _allowed(self, tokens: Tensor) -> Tensor:
        """Whether every token of a response may stand where it stands."""
        return (((tokens == 0) | self.decides) & (tokens < self.useful)).all(-1)

    def answer(self, tokens: Tensor) -> Tensor:
        """What decides about a response, as a number: its final sum and ``y_0 mod 3``, int64 ``[..., L]`` to ``[...]``.

        -1 where a token may not stand where it stands.
        """
        answer = 3 * self.states(tokens)[..., -1] + tokens[..., 0] % 3
        return torch.where(self._allowed(tokens), answer, -1)

    def distinct_correct(self, tokens: Tensor) -> Tensor:
        """Number of different correct responses of each prompt, int64 ``[P]``."""
        powers = self.vocab ** torch.arange(self.length)
        codes, right = (tokens * powers).sum(-1), self.reward(tokens).bool()
        return torch.tensor([len(codes[p][right[p]].unique()) for p in range(self.prompts)])


class TabularPolicy(nn.Module):
    """A table of logits ``W[P, L, M, V]``: one free distribution for each prompt, position and running sum.

    Args:
        task: The task it plays.
        filler_logit: Added to token 0 at the positions that are no decision.
        useless_logit: Logit of every token that is not useful.
        seed: Seed of the standard-normal initialization.

    Example:
        >>> task = ModularSum(prompts=2, length=3, seed=0)
        >>> policy = TabularPolicy(task, seed=0)
        >>> tokens = policy.sample(4, torch.Generator().manual_seed(0))
        >>> policy(tokens).shape
        torch.Size([2, 4, 3, 12])
    """

    def __init__(
        self, task: ModularSum, *, filler_logit: float = 6.0, useless_logit: float = -6.0, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(task.prompts, task.length, task.modulus, task.useful, generator=generator)
        table = nn.functional.pad(table, (0, task.vocab - task.useful), value=useless_logit)
        table[:, ~task.decides, :, 0] += filler_logit
        self.task = task
        self.table = nn.Parameter(table)

    def forward(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Logits of every position, given the tokens before it: ``[P, n, L]`` to ``[P, n, L, V]``.

        ``prompts`` numbers the P prompts; None means all, in order.
        """
        prompt = torch.arange(self.task.prompts) if prompts is None else prompts
        return self.table[prompt[:, None, None], torch.arange(self.task.length), self.task.states(tokens)[..., :-1]]

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator,
        temperature: float | Callable[[Tensor], Tensor] = 1.0,
        *,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """``n`` responses to every prompt, or to those that ``prompts`` numbers, int64 ``[P, n, L]``.

        ``temperature`` divides the logits: a number, or a function from logits ``[N, V]`` to temperatures ``[N]``.
        """
        task = self.task
        table = self.table if prompts is None else self.table[prompts]
        if callable(temperature):
            table = table / temperature(table.flatten(0, -2)).view(*table.shape[:-1], 1)
        else:
            table = table / temperature
        cumulative = table.softmax(-1).cumsum(-1)
        uniforms = torch.rand(task.length, len(table), n, generator=generator)
        prompt = torch.arange(len(table))[:, None]
        state = torch.zeros(len(table), n, dtype=torch.long)
        tokens = []
        for position in range(task.length):
            rows = cumulative[prompt, position, state]
            token = torch.searchsorted(rows, uniforms[position, ..., None]).squeeze(-1).clamp_max(task.vocab - 1)
            state = (state + task.contribution[position, token]) % task.modulus
            tokens.append(token)
        return torch.stack(tokens, -1)

    @torch.no_grad()
    def mean_entropy(self) -> float:
        """Exact expected entropy per token in nats, over prompts, positions and the states the policy visits."""
        task = self.task
        probs = self.table.softmax(-1)
        entropy = -torch.special.xlogy(probs, probs).sum(-1)
        visited = torch.zeros(task.prompts, task.modulus)
        visited[:, 0] = 1.0
        total = 0.0
        states = torch.arange(task.modulus)
        for position in range(task.length):
            total += float((visited * entropy[:, position]).sum())
            flow = visited[..., None] * probs[:, position]  # [P, M, V]
            reached = (states[:, None] + task.contribution[position]) % task.modulus
            visited = torch.zeros_like(visited).index_add_(1, reached.flatten(), flow.flatten(1))
        return total / (task.prompts * task.length)
