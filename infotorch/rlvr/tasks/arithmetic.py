"""Parser of arithmetic expressions: text to a small tree, no ``eval``.

Grammar: ``sum = product (('+' | '-') product)*``, ``product = atom (('*' | '/') atom)*``,
``atom = number | '(' sum ')'``; numbers are unsigned integers without leading zeros, no spaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Expression", "ParseError", "parse"]

_MAX_DEPTH = 32


class ParseError(ValueError):
    """The text is no arithmetic expression."""


@dataclass(frozen=True)
class Expression:
    """Value, numbers used (left to right) and standard form of an expression; ``value`` None: division by 0.

    The standard form sorts the operands of sums and products, so that ``3+2*5`` and ``5*2+3`` have the same one.
    """

    value: Fraction | None
    numbers: tuple[int, ...]
    form: str


def parse(text: str) -> Expression:
    """Parse a whole expression.

    Raises:
        ParseError: If ``text`` is not an expression of the grammar.

    Example:
        >>> tree = parse("7-2*(1+4)")
        >>> tree.value, tree.numbers, parse("(4+1)*2+3").form == parse("3+2*(1+4)").form
        (Fraction(-3, 1), (7, 2, 1, 4), True)
    """
    tree, end = _sum(text, 0, 0)
    if end != len(text):
        raise ParseError(f"unexpected {text[end]!r} at {end} in {text!r}")
    return tree


def _sum(text: str, at: int, depth: int) -> tuple[Expression, int]:
    first, at = _product(text, at, depth)
    terms = [("+", first)]
    while at < len(text) and text[at] in "+-":
        sign = text[at]
        term, at = _product(text, at + 1, depth)
        terms.append((sign, term))
    if len(terms) == 1:
        return first, at
    value: Fraction | None = Fraction(0)
    for sign, term in terms:
        if value is None or term.value is None:
            value = None
        else:
            value = value + term.value if sign == "+" else value - term.value
    form = "(" + "".join(sorted(sign + term.form for sign, term in terms)) + ")"
    return Expression(value, tuple(n for _, term in terms for n in term.numbers), form), at


def _product(text: str, at: int, depth: int) -> tuple[Expression, int]:
    first, at = _atom(text, at, depth)
    factors = [("*", first)]
    while at < len(text) and text[at] in "*/":
        operator = text[at]
        factor, at = _atom(text, at + 1, depth)
        factors.append((operator, factor))
    if len(factors) == 1:
        return first, at
    value: Fraction | None = Fraction(1)
    for operator, factor in factors:
        if value is None or factor.value is None or (operator == "/" and factor.value == 0):
            value = None
        else:
            value = value * factor.value if operator == "*" else value / factor.value
    form = "".join(sorted(operator + factor.form for operator, factor in factors))
    return Expression(value, tuple(n for _, factor in factors for n in factor.numbers), form), at


def _atom(text: str, at: int, depth: int) -> tuple[Expression, int]:
    if depth > _MAX_DEPTH:
        raise ParseError(f"more than {_MAX_DEPTH} nested parentheses")
    if text[at : at + 1] == "(":
        tree, at = _sum(text, at + 1, depth + 1)
        if text[at : at + 1] != ")":
            raise ParseError(f"missing ')' at {at} in {text!r}")
        return tree, at + 1
    end = at
    while end < len(text) and text[end] in "0123456789":
        end += 1
    digits = text[at:end]
    if not digits or (len(digits) > 1 and digits[0] == "0"):
        raise ParseError(f"expected a number at {at} in {text!r}")
    if len(digits) > 9:
        raise ParseError(f"number of more than 9 digits at {at}")
    number = int(digits)
    return Expression(Fraction(number), (number,), digits), end
