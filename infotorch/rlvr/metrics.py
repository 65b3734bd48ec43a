"""What a run of reinforcement learning is judged by: pass@k, distinct correct answers, and its curves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["TrainingHistory", "distinct_correct", "pass_at_k"]


def pass_at_k(correct: Tensor, k: int) -> Tensor:
    r"""Probability that at least one of ``k`` samples is right, unbiased from ``n >= k`` samples.

    .. math:: 1 - \binom{n-c}{k} / \binom{n}{k} = 1 - \prod_{i=n-c+1}^{n} (1 - k/i)

    Reference: Chen et al. (2021), "Evaluating large language models trained on code", arXiv 2107.03374.

    Args:
        correct: ``[..., n]``, nonzero where a sample is right.
        k: Samples one may submit, 1..n.

    Returns:
        float64 ``[...]``, one value per problem.

    Raises:
        ValueError: If ``k`` is outside 1..n.

    Example:
        >>> pass_at_k(torch.tensor([[1, 0, 0, 0]]), k=2)
        tensor([0.5000], dtype=torch.float64)
    """
    n = correct.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 to {n} (the number of samples per problem), got {k}")
    wrong = n - (correct != 0).sum(-1, keepdim=True)
    i = torch.arange(1, n + 1, dtype=torch.float64, device=correct.device)
    factors = torch.where(i > wrong, (1.0 - k / i).clamp_min(0.0), 1.0)
    return 1.0 - factors.prod(-1)


def distinct_correct(answers: Sequence[Hashable | None], samples: int) -> list[int]:
    """Number of different correct answers of each problem.

    Args:
        answers: Standard form of every answer, None where it is wrong; ``samples`` adjacent ones per problem.
        samples: Samples per problem.

    Raises:
        ValueError: If the number of answers is no multiple of ``samples``.

    Example:
        >>> distinct_correct(["1+2", "1+2", "3", None, None, "4"], samples=3)
        [2, 1]
    """
    if samples < 1 or len(answers) % samples:
        raise ValueError(f"answers: expected a multiple of samples={samples} entries, got {len(answers)}")
    return [len(set(answers[i : i + samples]) - {None}) for i in range(0, len(answers), samples)]


@dataclass
class TrainingHistory:
    """Values by step: the curves of a run. Part of the checkpoint, so a resumed run has whole curves.

    Example:
        >>> history = TrainingHistory()
        >>> history.append(0, reward=0.1, entropy=0.7)
        >>> history.append(1, reward=0.2, entropy=0.5)
        >>> history.column("reward")
        ([0, 1], [0.1, 0.2])
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def append(self, step: int, **values: float) -> None:
        """Add values of a step; a step that exists already is extended."""
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(values)
        else:
            self.rows.append({"step": step, **values})

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one quantity, over the steps that have it."""
        rows = [row for row in self.rows if name in row]
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def names(self) -> list[str]:
        """Names of all recorded quantities, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))
