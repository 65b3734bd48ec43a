r"""ETTRL: reinforcement learning without labels, and advantages scaled by how unsure a response was.

Test-time reinforcement learning (TTRL) rewards a completion for agreeing with the majority of its prompt's
completions: :func:`majority_vote`. Early on that majority is over-confident; ETTRL's entropy-based advantage
reshaping, :func:`ear_advantage`, amplifies confident responses and damps hesitant ones, or clips advantages.
Where the tree rollouts of ETTRL fork: :func:`infotorch.rollout.fork_positions`.

When to use: no labels, answers that can be compared, and a model whose majority is right more often than its single
samples. Watch ``majority_ratio``, and with some labels ``label_accuracy``: a wrong majority is learned as well.

References:
    "ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning Via Entropy Mechanism",
    2025, arXiv:2508.11356; Y. Zuo et al., "TTRL: Test-Time Reinforcement Learning", 2025, arXiv:2504.16084.

Deviations:
    - ETTRL has no public code; its formulas follow public descriptions of the paper. The scale Y turns negative where
      a response has more than twice its group's mean entropy, which *flips the sign* of the advantage. The default
      follows the formula, logs ``negative_scale_fraction``, and ``y_min=0`` prevents it.
    - A prompt without a single parseable answer gets rewards 0 (TTRL's code raises).
    - Votes and rewards both compare answer ids. TTRL's code counts extracted strings and rewards with an equivalence
      checker: give equivalent answers one id to have both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.core.reduce import masked_mean, segment_count, segment_ids
from infotorch.losses._groups import Groups
from infotorch.losses.advantages import group_advantages
from infotorch.losses.batch import TokenBatch, widen
from infotorch.losses.registry import Part, register, register_recipe

# ---------------------------------------------------------------------------------------------------------
# The majority as a label
# ---------------------------------------------------------------------------------------------------------


def majority_labels(answer: Tensor, group: Tensor, *, ties: str = "first") -> Tensor:
    """The most frequent answer of each row's prompt; -1 where no completion has one.

    Args:
        answer: Integer answer ids, shape ``(B,)``; -1 for an answer that could not be parsed.
        group: Prompt ids, ``(B,)``.
        ties: Between equally frequent answers: the one seen ``"first"`` in row order, which is rollout order (as
            TTRL); the ``"lowest"`` id; or ``"none"``: a tied vote gives no label.

    Returns:
        Shape ``(B,)``.

    Raises:
        ValueError: Unknown ``ties``.

    >>> majority_labels(torch.tensor([5, 2, 2, 5, -1, -1]), torch.tensor([0, 0, 0, 0, 0, 1]))
    tensor([ 5,  5,  5,  5,  5, -1])
    """
    check_choice("ties", ties, ("first", "lowest", "none"))
    groups = Groups(group)
    same = segment_ids(group, answer)
    votes = torch.where(answer == -1, 0, segment_count(same)[same])
    most = groups.max(votes)
    leads = (votes == most) & (votes > 0)
    last = torch.iinfo(answer.dtype).max
    lowest = groups.min(torch.where(leads, answer, last))
    if ties == "first":
        rows = torch.arange(answer.numel(), device=answer.device)
        first = groups.min(torch.where(leads, rows, answer.numel() - 1))
        label = answer[first]
    elif ties == "lowest":
        label = lowest
    else:
        label = torch.where(lowest == groups.max(torch.where(leads, answer, -1)), lowest, -1)
    return torch.where(most > 0, label, -1)


def vote_diagnostics(
    answer: Tensor, group: Tensor, correct: Tensor | None = None, *, ties: str = "first"
) -> dict[str, Tensor]:
    """How good a majority vote is, each a mean over prompts.

    ``majority_ratio``: share of a prompt's completions, unparseable ones included, that gave the label. With
    ``correct`` also ``label_accuracy``; ``reward_accuracy``: share of completions whose reward by vote equals the true
    one; ``ground_truth_ratio``: share of correct completions; ``pass_at_n``: prompts with one at least. Votes of
    completions that share a prefix (trees) are correlated, and their ratio is not that of independent samples.

    Args:
        answer: Answer ids, ``(B,)``; -1 for none.
        group: Prompt ids, ``(B,)``.
        correct: Which completions are right (boolean, or true rewards of which those above 0 are), ``(B,)``.
        ties: See :func:`majority_labels`.

    >>> found = vote_diagnostics(torch.tensor([4, 4, 1, -1]), torch.zeros(4, dtype=torch.long),
    ...                          torch.tensor([False, False, True, False]))
    >>> {name: float(value) for name, value in found.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'majority_ratio': 0.5, 'label_accuracy': 0.0, 'reward_accuracy': 0.25, 'ground_truth_ratio': 0.25,
     'pass_at_n': 1.0}
    """
    groups = Groups(group)
    label = majority_labels(answer, group, ties=ties)
    agrees = (answer == label) & (label != -1)
    found = {"majority_ratio": agrees.double()}
    if correct is not None:
        right = correct > 0
        found["label_accuracy"] = groups.any(agrees & right)
        found["reward_accuracy"] = agrees == right
        found["ground_truth_ratio"] = right
        found["pass_at_n"] = groups.any(right)
    once = groups.first()
    return {name: groups.mean(x.double())[once].mean() for name, x in found.items()}


@register("majority_vote", "reward", requires=("group", "answer"), example={"ties": "lowest"})
def majority_vote(batch: TokenBatch, *, ties: str = "first") -> Tensor:
    """TTRL's reward without labels: 1 for the answer that most of the prompt's completions gave, else 0.

    Args:
        batch: Reads ``group`` and ``answer``. True rewards, where the batch has some, are replaced, and used for
            diagnostics by :class:`MajorityVote`.
        ties: See :func:`majority_labels`; ``"first"`` depends on the order of the rows.

    Returns:
        Rewards, shape ``(B,)``; 0 for answers that could not be parsed.

    Raises:
        ValueError: ``group`` or ``answer`` is missing, unknown ``ties``.

    Reference: Y. Zuo et al., 2025, arXiv:2504.16084.

    >>> batch = TokenBatch(log_probs=torch.zeros(4, 1), mask=torch.ones(4, 1, dtype=torch.bool),
    ...                    group=torch.zeros(4, dtype=torch.long), answer=torch.tensor([7, 3, 7, -1]))
    >>> majority_vote(batch)
    tensor([1., 0., 1., 0.])
    """
    batch.require("majority_vote", "group", "answer")
    assert batch.group is not None
    assert batch.answer is not None
    label = majority_labels(batch.answer, batch.group, ties=ties)
    return ((batch.answer == label) & (label != -1)).to(batch.log_probs.dtype)


class MajorityVote(Part, name="majority_vote"):
    """Module of :func:`majority_vote`; reports :func:`vote_diagnostics` of the rollout batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._metrics: dict[str, Tensor] = {}

    def forward(self, batch: TokenBatch) -> Tensor:
        """Rewards by vote; the true ones are compared with them first."""
        found = super().forward(batch)
        assert batch.group is not None
        assert batch.answer is not None
        metrics = vote_diagnostics(batch.answer, batch.group, batch.rewards, **self.options)
        self._metrics = {name: value.to(found.dtype) for name, value in metrics.items()}
        return found

    def rollout_metrics(self) -> dict[str, Tensor]:
        """Diagnostics of the present rollout batch."""
        return self._metrics


def training_rows(
    group: Tensor,
    count: int,
    *,
    select: str = "balanced",
    tree: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which of a prompt's votes to train on: more completions may vote than are trained on.

    Args:
        group: Prompt ids, ``(B,)``.
        count: Completions per prompt to keep; all, where there are fewer.
        select: The ``"first"`` in row order (TTRL; with trees it takes whole trees), ``"random"`` ones, or
            ``"balanced"``: equally many from every tree, each tree's first rows first.
        tree: Tree ids, ``(B,)``, unique over prompts; None: every row is a tree of its own.
        generator: For ``select="random"``.

    Returns:
        Boolean, shape ``(B,)``, to be used as ``batch.select(rows.nonzero().squeeze(1))`` once rewards are given.

    Raises:
        ValueError: ``count`` below 1, unknown ``select``.

    >>> training_rows(torch.zeros(4, dtype=torch.long), 2, tree=torch.tensor([0, 0, 1, 1]))
    tensor([ True, False,  True, False])
    """
    check_range("count", count, 1)
    check_choice("select", select, ("first", "random", "balanced"))
    groups = Groups(group)
    if select == "random":
        return groups.rank(torch.rand(group.shape, generator=generator, device=group.device)) < count
    key = Groups(tree).rank() if select == "balanced" and tree is not None else None
    return groups.rank(key) < count


# ---------------------------------------------------------------------------------------------------------
# Entropy-based advantage reshaping
# ---------------------------------------------------------------------------------------------------------


def entropy_scale(response_entropy: Tensor, group: Tensor, *, y_min: float | None = None) -> Tensor:
    r"""Adv-Res's factor :math:`Y_i = 2 - h_i / \bar h`, :math:`\bar h` the mean over the prompt; 1 where that is 0.

    Args:
        response_entropy: Mean token entropy of each response, nats, ``(B,)``.
        group: Prompt ids, ``(B,)``.
        y_min: Least factor, 1 at most; None for none. Below 0 a factor flips the sign of an advantage.

    Returns:
        Shape ``(B,)``, without gradient.

    Raises:
        ValueError: ``y_min`` above 1.

    >>> entropy_scale(torch.tensor([0.1, 0.1, 0.1, 0.9]), torch.zeros(4, dtype=torch.long))
    tensor([ 1.6667,  1.6667,  1.6667, -1.0000])
    """
    if y_min is not None:
        check_range("y_min", y_min, high=1.0)
    h = widen(response_entropy.detach())
    mean = Groups(group).mean(h)
    scale = torch.where(mean > 0, 2 - h / mean.clamp(min=torch.finfo(h.dtype).tiny), 1.0)
    return scale if y_min is None else scale.clamp(min=y_min)


def _response_entropy(batch: TokenBatch, name: str | None) -> Tensor:
    if name is None:
        return masked_mean(batch.sampling_entropy, batch.mask, dim=1)
    batch.require("ear", f"extras.{name}")
    return batch.extras[name]


@register("ear", "advantage", requires=("rewards", "group", "sampling_entropy"))
def ear_advantage(
    batch: TokenBatch,
    *,
    mode: str = "res",
    beta: float = 2.0,
    y_min: float | None = None,
    response_entropy: str | None = None,
    scale: str = "group",
    eps: float = 1e-6,
    singleton: str = "raw",
) -> Tensor:
    r"""EAR: GRPO's advantage, larger for confident responses and smaller for hesitant ones.

    ``"res"`` (Adv-Res, the paper's method): :math:`A'_i = (2 - h_i / \bar h)\, A_i` with :math:`h_i` the mean token
    entropy of the response under the policy that sampled and :math:`\bar h` its mean over the prompt. ``"clip"``
    (Adv-Clip): :math:`A'_i = \mathrm{clip}(A_i, -\beta, \beta)`.

    Args:
        batch: Reads ``rewards``, ``group`` and ``old_entropy`` (or ``entropy``).
        mode: ``"res"`` or ``"clip"``.
        beta: Bound of Adv-Clip.
        y_min: Least factor of Adv-Res; None follows the formula, whose factor is negative above twice the mean
            entropy; 0 keeps every sign.
        response_entropy: Name of an entry of ``extras``, ``(B,)``, to use for :math:`h_i`: for branches of a tree the
            mean over the whole trajectory, of which the mask holds the new part only. None: mean over the mask.
        scale: See :func:`group_advantages`, like the next two.
        eps: Added to the deviation.
        singleton: Groups of one.

    Returns:
        Shape ``(B, T)``.

    Raises:
        ValueError: A missing field, an unknown mode, ``beta`` not positive, ``y_min`` above 1.

    Reference: 2025, arXiv:2508.11356.

    >>> batch = TokenBatch(log_probs=torch.zeros(2, 1), mask=torch.ones(2, 1, dtype=torch.bool),
    ...                    rewards=torch.tensor([1.0, 0.0]), group=torch.tensor([0, 0]),
    ...                    entropy=torch.tensor([[0.5], [1.5]]))
    >>> ear_advantage(batch, scale="none").squeeze(1)  # 1.5 * 0.5 and 0.5 * -0.5
    tensor([ 0.7500, -0.2500])
    """
    batch.require("ear", "rewards", "group", "sampling_entropy")
    check_choice("mode", mode, ("res", "clip"))
    check_range("beta", beta, 0.0, low_open=True)
    assert batch.rewards is not None
    assert batch.group is not None
    found = group_advantages(batch.rewards, batch.group, scale=scale, eps=eps, singleton=singleton)
    if mode == "clip":
        found = found.clamp(-beta, beta)
    else:
        found = found * entropy_scale(_response_entropy(batch, response_entropy), batch.group, y_min=y_min)
    return found.unsqueeze(1) * batch.mask


class EAR(Part, name="ear"):
    """Module of :func:`ear_advantage`; reports the share of responses whose factor is negative."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative: Tensor | None = None

    def observe(self, batch: TokenBatch) -> None:
        """Count the factors of this rollout batch that flip a sign."""
        if self.options.get("mode", "res") != "res" or batch.group is None:
            return
        h = _response_entropy(batch, self.options.get("response_entropy"))
        scale = entropy_scale(h, batch.group, y_min=self.options.get("y_min"))
        self._negative = masked_mean((scale < 0).to(h.dtype), batch.mask.any(1))

    def rollout_metrics(self) -> dict[str, Tensor]:
        """``negative_scale_fraction`` of the present rollout batch."""
        return {} if self._negative is None else {"negative_scale_fraction": self._negative}


register_recipe("ttrl", rewards=["majority_vote"], advantage="grpo", policy="ppo", regularizers=["kl"])
register_recipe("ettrl", rewards=["majority_vote"], advantage="ear", policy="ppo", regularizers=["kl"])
