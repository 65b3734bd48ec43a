"""A small recurrent policy and a training loop for environments of a few tokens: seconds per run, any recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from infotorch.core import token_stats
from infotorch.losses import LossOutput, Recipe, TokenBatch
from infotorch.rlvr import TrainingHistory


class Environment(Protocol):
    """Prompts as integer features, when a response ends, and what it is worth."""

    prompts: Tensor  # integers [P, F]
    length: int
    vocab: int

    def ends(self, tokens: Tensor) -> Tensor:
        """Boolean: the tokens after which a response is over."""
        ...

    def score(self, prompt: Tensor, tokens: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rewards and answer ids ``[B]`` of responses ``[B, T]`` to the prompts of these numbers."""
        ...


class GRUPolicy(nn.Module):
    """Embedded prompt features start a GRU that reads the response so far."""

    def __init__(self, sizes: Sequence[int], vocab: int, dim: int = 64, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
            self.tokens = nn.Embedding(vocab + 1, dim)  # the last one starts a response
            self.gru = nn.GRU(dim, dim, batch_first=True)
            self.head = nn.Linear(dim, vocab)

    def start(self, prompts: Tensor) -> Tensor:
        """Hidden state after the prompt ``[B, F]``: ``[1, B, D]``."""
        features = [embed(prompts[:, i]) for i, embed in enumerate(self.features)]
        return torch.tanh(torch.stack(features).sum(0)).unsqueeze(0)

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Logits of every position, given the tokens before it: ``[B, T]`` to ``[B, T, V]``."""
        first = tokens.new_full((len(tokens), 1), self.head.out_features)
        hidden, _ = self.gru(self.tokens(torch.cat((first, tokens[:, :-1]), 1)), self.start(prompts))
        return self.head(hidden)

    @torch.no_grad()
    def sample(self, prompts: Tensor, env: Environment, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One response to each row: tokens and mask ``[B, T]``."""
        hidden = self.start(prompts)
        token = prompts.new_full((len(prompts), 1), self.head.out_features)
        alive = torch.ones_like(token, dtype=torch.bool)
        tokens, mask = [], []
        for _ in range(env.length):
            out, hidden = self.gru(self.tokens(token), hidden)
            token = torch.multinomial(self.head(out[:, 0]).softmax(-1), 1, generator=generator)
            tokens.append(token)
            mask.append(alive)
            alive = alive & ~env.ends(token)
        return torch.cat(tokens, 1), torch.cat(mask, 1)


def train(
    policy: GRUPolicy,
    env: Environment,
    recipe: Recipe,
    *,
    steps: int,
    prompts: int,
    samples: int,
    lr: float,
    seed: int,
    shape: Callable[[Tensor, Tensor], Tensor] | None = None,
    keep: Callable[[TokenBatch], Tensor] | None = None,
    watch: Callable[[GRUPolicy], dict[str, float]] | None = None,
) -> TrainingHistory:
    """One update per rollout batch, with Adam.

    Args:
        policy: Trained in place.
        env: Prompts and rewards.
        recipe: The method.
        steps: Updates.
        prompts: Prompts per step, drawn without replacement.
        samples: Responses per prompt.
        lr: Learning rate.
        seed: Of prompts and responses.
        shape: ``(rewards, mask) -> rewards``: a hand-made reward, which is not what is recorded.
        keep: Rows to train on, of the prepared batch; boolean.
        watch: What to measure before each update and after the last.

    Returns:
        One row per step: ``reward``, ``signal`` (share of tokens with a gradient), and what ``watch`` gives.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    history = TrainingHistory()
    for step in range(steps):
        chosen = torch.randperm(len(env.prompts), generator=generator)[:prompts].repeat_interleave(samples)
        features = env.prompts[chosen]
        tokens, mask = policy.sample(features, env, generator)
        rewards, answer = env.score(chosen, tokens, mask, generator)
        history.append(step, reward=float(rewards.mean()), **({} if watch is None else watch(policy)))
        stats = token_stats(policy(features, tokens), tokens)
        assert stats.log_probs is not None
        log_probs = stats.log_probs
        log_probs.retain_grad()
        batch = recipe.prepare(
            TokenBatch(
                log_probs=log_probs,
                entropy=stats.entropy,
                mask=mask,
                rewards=rewards if shape is None else shape(rewards, mask),
                group=chosen,
                answer=answer,
                tokens=tokens,
            )
        )
        rows = None if keep is None else keep(batch).nonzero().squeeze(1)
        if rows is None or len(rows):
            out: LossOutput = recipe(batch if rows is None else batch.select(rows))
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            optimizer.step()
            recipe.after_step()
        grad = log_probs.grad
        history.append(step, signal=0.0 if grad is None else float((grad[mask] != 0).float().mean()))
    if watch is not None:
        history.append(steps, **watch(policy))
    return history
