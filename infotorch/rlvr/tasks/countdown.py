"""Countdown-like arithmetic: reach a target with the given numbers, each used at most once.

The prompt ``3,5,8,2=11:`` may be answered by ``3+8``, ``5*2+3-...`` and so on: most problems have dozens of correct
expressions, so a policy can be right and diverse, or right and collapsed, and the difference can be counted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from infotorch.rlvr.tasks.arithmetic import ParseError, parse
from infotorch.rlvr.tasks.base import CharCodec, Codec, Task

__all__ = ["Countdown", "CountdownProblem"]

_OPERATORS = "+-*"


@dataclass(frozen=True)
class CountdownProblem:
    """Numbers that may be used, and the value to reach."""

    numbers: tuple[int, ...]
    target: int


class Countdown(Task[CountdownProblem]):
    """Reach the target with ``+``, ``-``, ``*`` (and, in answers, ``/`` and parentheses).

    Reward 1 when the answer is a well-formed expression of the exact target value that uses only given numbers, each
    at most as often as it is given; otherwise 0. Problems are drawn so that they have at least ``min_solutions``
    correct expressions without parentheses.

    Args:
        count: Numbers per problem, 2 to 5.
        max_number: Numbers are drawn from 1..max_number.
        max_target: Targets lie in 1..max_target and are none of the numbers.
        min_solutions: Correct parenthesis-free expressions a problem has at least, where equal numbers at
            different places count apart.
        codec: Vocabulary; characters by default.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> task = Countdown()
        >>> problem = CountdownProblem((3, 5, 8, 2), 11)
        >>> task.prompt_text(problem), task.score(problem, "3+8"), task.score(problem, "3+3+5")
        ('3,5,8,2=11:', 1.0, 0.0)
        >>> task.normal_form(problem, "8+3") == task.normal_form(problem, "3+8")
        True
    """

    name = "countdown"

    def __init__(
        self,
        count: int = 4,
        *,
        max_number: int = 9,
        max_target: int = 20,
        min_solutions: int = 8,
        codec: Codec | None = None,
    ) -> None:
        if not 2 <= count <= 5:
            raise ValueError(f"count: expected 2 to 5 numbers per problem, got {count}")
        for name, value in {
            "max_number": max_number,
            "max_target": max_target,
            "min_solutions": min_solutions,
        }.items():
            if value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        self.count, self.max_number, self.max_target = count, max_number, max_target
        self.min_solutions = min_solutions
        self.codec = codec or CharCodec("0123456789+-*/()=,:")
        self._correct: dict[CountdownProblem, NDArray[np.int64]] = {}  # problem -> correct templates
        digits = len(str(max_number))
        self.max_prompt = count * (digits + 1) + len(str(max_target)) + 1
        self.max_response = count * (digits + 1)

    @cached_property
    def _templates(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Every parenthesis-free expression: number positions and operators ``[M, count]``, terms used ``[M]``."""
        places, operators, used = [], [], []
        for size in range(1, self.count + 1):
            for order in itertools.permutations(range(self.count), size):
                for signs in itertools.product(range(len(_OPERATORS)), repeat=size - 1):
                    places.append([*order, *[0] * (self.count - size)])
                    operators.append([0, *signs, *[0] * (self.count - size)])
                    used.append(size)
        return np.array(places), np.array(operators), np.array(used)

    def _values(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Values of all templates for problems ``numbers [K, count]``: int64 ``[K, M]``."""
        places, operators, used = self._templates
        total = np.zeros((len(numbers), len(places)), dtype=np.int64)
        term = numbers[:, places[:, 0]]
        for step in range(1, self.count):
            operand, operator = numbers[:, places[:, step]], operators[:, step]
            live = used > step
            closes = live & (operator != 2)  # '+' and '-' end the running product
            total = np.where(closes, total + term, total)
            opened = np.where(operator == 0, operand, np.where(operator == 1, -operand, term * operand))
            term = np.where(live, opened, term)
        return total + term

    def _draw(self, count: int, seed: int, test: bool) -> list[CountdownProblem]:
        rng = np.random.default_rng([seed, int(test)])
        found: dict[CountdownProblem, None] = {}
        for _ in range(200):
            numbers = rng.integers(1, self.max_number + 1, size=(256, self.count))
            values = self._values(numbers)
            targets = values[np.arange(256), rng.integers(0, values.shape[1], size=256)]
            solutions = (values == targets[:, None]).sum(1)
            good = (targets >= 1) & (targets <= self.max_target) & (solutions >= self.min_solutions)
            good &= ~(numbers == targets[:, None]).any(1)
            for index in np.flatnonzero(good):
                problem = CountdownProblem(tuple(int(n) for n in numbers[index]), int(targets[index]))
                key = CountdownProblem(tuple(sorted(problem.numbers)), problem.target)
                if self.is_test(key) == test:
                    found[problem] = None
                    self._correct[problem] = np.flatnonzero(values[index] == problem.target)
            if len(found) >= count:
                return list(found)[:count]
        raise ValueError(
            f"count: only {len(found)} different {'test' if test else 'training'} problems exist for these options, "
            f"{count} were asked for"
        )

    def train(self, count: int, seed: int = 0) -> list[CountdownProblem]:
        """Training problems; no re-ordering of their numbers is ever a test problem."""
        return self._draw(count, seed, test=False)

    def test(self, count: int, seed: int = 0) -> list[CountdownProblem]:
        """Held-out problems."""
        return self._draw(count, seed, test=True)

    def prompt_text(self, problem: CountdownProblem) -> str:
        """``3,5,8,2=11:``."""
        return ",".join(map(str, problem.numbers)) + f"={problem.target}:"

    def solutions(self, problem: CountdownProblem) -> list[str]:
        """Every correct expression without parentheses."""
        return [self._write(problem, int(template)) for template in self._correct_templates(problem)]

    def _correct_templates(self, problem: CountdownProblem) -> NDArray[np.int64]:
        if problem not in self._correct:
            (values,) = self._values(np.array([problem.numbers]))
            self._correct[problem] = np.flatnonzero(values == problem.target)
        return self._correct[problem]

    def demonstration_text(self, problem: CountdownProblem, generator: torch.Generator) -> str:
        """A uniformly drawn correct expression without parentheses."""
        correct = self._correct_templates(problem)
        if not len(correct):
            raise ValueError(f"problem: {problem} has no solution without parentheses")
        return self._write(problem, int(correct[int(torch.randint(len(correct), (), generator=generator))]))

    def _write(self, problem: CountdownProblem, template: int) -> str:
        places, operators, used = self._templates
        text = str(problem.numbers[places[template, 0]])
        for step in range(1, used[template]):
            text += _OPERATORS[operators[template, step]] + str(problem.numbers[places[template, step]])
        return text

    def score(self, problem: CountdownProblem, text: str) -> float:
        """1 for a correct expression, else 0."""
        return 0.0 if self.normal_form(problem, text) is None else 1.0

    def normal_form(self, problem: CountdownProblem, text: str) -> str | None:
        """The expression with the operands of sums and products sorted; None when it is not correct."""
        try:
            tree = parse(text)
        except ParseError:
            return None
        if tree.value != problem.target or Counter(tree.numbers) - Counter(problem.numbers):
            return None
        return tree.form

    def answer_form(self, problem: CountdownProblem, text: str) -> str | None:
        """The expression with the operands of sums and products sorted, right or wrong; None when malformed."""
        try:
            return parse(text).form
        except ParseError:
            return None
