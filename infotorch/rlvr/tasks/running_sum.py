"""RunSum: noisy running sums modulo 10, a task with known fork tokens and one correct answer.

The prompt ``3+5+1+9+2+4=`` is answered by the running sums and the final one, ``3,8,9,8,0,4;4``. Demonstrations corrupt
each running sum after the first with probability ``noise`` (a wrong digit, carried on), so that a model fitted to them
is right on about ``(1 - noise)^(terms - 1)`` of its samples, its majority answer is nearly always right, and its
entropy sits at the running sums alone. With ``rechecks``, half of the demonstrations repeat the chain, with fresh
noise, so that longer answers have more uncertain tokens and are no better: ``3,8,9,8,0,4,3,8,9,8,0,4;4``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from infotorch.rlvr.tasks.base import CharCodec, Codec, Task

__all__ = ["RunSum", "RunSumProblem"]


@dataclass(frozen=True)
class RunSumProblem:
    """Digits to add."""

    digits: tuple[int, ...]

    @property
    def total(self) -> int:
        """The sum modulo 10."""
        return sum(self.digits) % 10


class RunSum(Task[RunSumProblem]):
    """Running sums modulo 10; reward 1 when the final sum is right, else 0.

    Args:
        terms: Digits per problem, or an inclusive range ``(low, high)`` for problems of mixed difficulty.
        noise: Probability of a wrong running sum in a demonstration.
        rechecks: Most repeats of the chain in a demonstration; half of them have 1 to that many.
        codec: Vocabulary; by default 16 tokens: digits, ``+=,;``, end and padding.

    Raises:
        ValueError: If ``terms``, ``noise`` or ``rechecks`` is out of range.

    Example:
        >>> task = RunSum(terms=3, noise=0.0)
        >>> problem = RunSumProblem((3, 5, 4))
        >>> task.demonstration_text(problem, torch.Generator()), task.score(problem, "3,9,2;2")
        ('3,8,2;2', 1.0)
    """

    name = "runsum"

    def __init__(
        self,
        terms: int | tuple[int, int] = 6,
        *,
        noise: float = 0.12,
        rechecks: int = 0,
        codec: Codec | None = None,
    ) -> None:
        self.terms = (terms, terms) if isinstance(terms, int) else terms
        if not 2 <= self.terms[0] <= self.terms[1]:
            raise ValueError(f"terms: expected at least 2, or a range (low, high), got {terms}")
        if not 0.0 <= noise < 1.0:
            raise ValueError(f"noise: expected a probability in [0, 1), got {noise}")
        if rechecks < 0:
            raise ValueError(f"rechecks: expected at least 0, got {rechecks}")
        self.noise, self.rechecks = noise, rechecks
        self.codec = codec or CharCodec("0123456789+=,;")
        self.max_prompt = 2 * self.terms[1]
        self.max_response = 2 * self.terms[1] * (1 + rechecks) + 2

    def _draw(self, count: int, seed: int, test: bool) -> list[RunSumProblem]:
        rng = np.random.default_rng([seed, int(test)])
        found: dict[RunSumProblem, None] = {}
        for _ in range(200 + 64 * count):
            size = int(rng.integers(self.terms[0], self.terms[1] + 1))
            problem = RunSumProblem(tuple(int(d) for d in rng.integers(0, 10, size=size)))
            if self.is_test(problem) == test:
                found[problem] = None
            if len(found) == count:
                return list(found)
        raise ValueError(f"count: only {len(found)} different problems found, {count} were asked for")

    def train(self, count: int, seed: int = 0) -> list[RunSumProblem]:
        """Training problems."""
        return self._draw(count, seed, test=False)

    def test(self, count: int, seed: int = 0) -> list[RunSumProblem]:
        """Held-out problems."""
        return self._draw(count, seed, test=True)

    def prompt_text(self, problem: RunSumProblem) -> str:
        """``3+5+4=``."""
        return "+".join(map(str, problem.digits)) + "="

    def demonstration_text(self, problem: RunSumProblem, generator: torch.Generator) -> str:
        """Running sums, each after the first wrong with probability ``noise``; perhaps once more, or several times."""
        sums = self._chain(problem, generator)
        if self.rechecks and torch.rand((), generator=generator) < 0.5:
            for _ in range(int(torch.randint(1, self.rechecks + 1, (), generator=generator))):
                sums += self._chain(problem, generator)
        return ",".join(map(str, sums)) + f";{sums[-1]}"

    def _chain(self, problem: RunSumProblem, generator: torch.Generator) -> list[int]:
        sums = [problem.digits[0]]
        for digit in problem.digits[1:]:
            value = (sums[-1] + digit) % 10
            if torch.rand((), generator=generator) < self.noise:
                value = (value + int(torch.randint(1, 10, (), generator=generator))) % 10
            sums.append(value)
        return sums

    def score(self, problem: RunSumProblem, text: str) -> float:
        """1 when the digit after the only ``;`` is the sum, else 0."""
        _, mark, final = text.partition(";")
        return float(mark == ";" and final == str(problem.total))

    def normal_form(self, problem: RunSumProblem, text: str) -> str | None:
        """The text itself (derivations differ in their running sums); None when the final sum is wrong."""
        return text if self.score(problem, text) else None

    def answer_form(self, problem: RunSumProblem, text: str) -> str | None:
        """What follows the only ``;``, None when that is not a number."""
        _, _, final = text.partition(";")
        return final if final.isdecimal() else None
