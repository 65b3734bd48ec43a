"""Trees of responses in two waves: roots, and branches that leave them at given positions. And training on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infotorch.rlvr import PromptBatch, RLVRModule
from infotorch.rlvr.responses import ResponseBatch
from infotorch.rollout import HFSampler, PaddedRollouts, Rollouts


def grow(
    sampler: HFSampler,
    prompts: Sequence[Tensor],
    roots: Rollouts,
    positions: Tensor,
    branches: int,
    *,
    budget: int,
    seed: int,
    ids: Tensor | None = None,
) -> tuple[list[Tensor], Rollouts, Tensor]:
    """Sample ``branches`` continuations of every root at each of its positions, in one call.

    Args:
        sampler: Of the roots too.
        prompts: Those of the roots.
        roots: First wave.
        positions: Where to branch, ``(roots, F)``; -1 for nowhere. ``root[:t]`` is kept, token t is drawn again.
        branches: Continuations per position.
        budget: Tokens of a whole response; a branch may use what its root had left at the position.
        seed: Of the second wave.
        ids: Number of each root in the random hash; None: its place.

    Returns:
        The branches' prompts, their new tokens, and the root of each row.
    """
    row, column = (positions >= 0).nonzero(as_tuple=True)
    at = positions[row, column].tolist()
    which = roots.prompt_index.tolist()
    starts = [torch.cat((prompts[which[r]], roots.tokens[r][:t])) for r, t in zip(row.tolist(), at, strict=True)]
    numbers = row if ids is None else ids[row]
    grown = sampler.generate(
        starts,
        branches,
        max_new_tokens=[budget - t for t in at],
        seed=seed,
        prompt_ids=numbers * positions.shape[1] + column,
    )
    return starts, grown, row[grown.prompt_index]


class BranchingModule(RLVRModule):
    """Training on groups of ``roots`` responses and ``branches`` continuations of each from every cut.

    A branch's kept beginning belongs to its prompt and gets no gradient there: it is trained through the root alone.
    """

    roots, branches = 4, 3

    def cuts(self, roots: PaddedRollouts, generator: torch.Generator) -> Tensor:
        """Where to branch: positions ``(roots, F)``, -1 for nowhere."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Also the share of held-out problems that the most likely response solves."""
        prompts = [self.task.prompt(problem) for problem in self.eval_problems]
        found = self.sampler.generate(prompts, 1, temperature=0.0, max_new_tokens=self.max_new_tokens)
        pairs = zip(self.eval_problems, found.tokens, strict=True)
        right = sum(self.task.reward(problem, tokens) for problem, tokens in pairs)
        return {**super().evaluate(), "greedy": right / len(prompts)}

    def roll_out(self, batch: PromptBatch) -> ResponseBatch:
        """Roots, then branches of the first root, of the second and so on, as one group per prompt."""
        assert isinstance(self.sampler, HFSampler)
        prompts, pad_id = [self.task.prompt(problem) for problem in batch.problems], self.task.codec.pad_id
        roots = self._generate(prompts, batch.ids, self.roots, self.temperature, self.seed)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.rollout_step)
        ids = batch.ids[roots.prompt_index] * self.roots + torch.arange(len(roots)) % self.roots
        starts, grown, root = grow(
            self.sampler,
            prompts,
            roots,
            self.cuts(roots.padded(pad_id), generator),
            self.branches,
            budget=self.max_new_tokens,
            seed=self.seed + 1,
            ids=ids,
        )
        everything = Rollouts.join((roots, dataclasses.replace(grown, prompt_index=grown.prompt_index + len(prompts))))
        group = torch.cat((roots.prompt_index, roots.prompt_index[root]))
        order = group.sort(stable=True).indices
        everything, group = _take(everything, order), group[order]
        beginnings = [*prompts, *starts]
        whole = [
            torch.cat((beginnings[p][len(prompts[g]) :], tokens))
            for p, g, tokens in zip(everything.prompt_index.tolist(), group.tolist(), everything.tokens, strict=True)
        ]
        rewards, answers = self._score(batch, dataclasses.replace(everything, tokens=whole, prompt_index=group))
        responses = ResponseBatch.from_rollouts(everything, beginnings, rewards, answers, pad_id)
        return dataclasses.replace(responses, group=group)


def _take(rollouts: Rollouts, rows: Tensor) -> Rollouts:
    """The given rows."""
    chosen: dict[str, Any] = {}
    for name in ("tokens", "logprobs", "entropies", "finish_reason"):
        chosen[name] = [getattr(rollouts, name)[i] for i in rows.tolist()]
    for name in ("prompt_index", "n_new_tokens", "n_prefill_tokens", "n_prefill_cached"):
        chosen[name] = getattr(rollouts, name)[rows]
    return dataclasses.replace(rollouts, **chosen)
