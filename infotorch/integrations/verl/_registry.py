"""Recipes under verl's names, and the objects behind them in this process."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from infotorch.core._checks import did_you_mean
from infotorch.losses import Recipe, recipe

PREFIX = "infotorch/"
"""What verl's names of recipes begin with."""
Answers = str | Callable[[list[Tensor]], Sequence[Hashable | None]]


@dataclass(frozen=True)
class Entry:
    """What was registered under a name.

    Attributes:
        method: As given to ``register``.
        options: Options of a method given by name.
        answers: Where extracted answers come from.
    """

    method: str | Mapping[str, Any] | Recipe
    options: Mapping[str, Any]
    answers: Answers

    def build(self) -> Recipe:
        """A new recipe, with no state."""
        if isinstance(self.method, str):
            return recipe(self.method, **self.options)
        return Recipe.from_dict(self.method.to_dict() if isinstance(self.method, Recipe) else self.method)


entries: dict[str, Entry] = {}
_built: dict[str, Recipe] = {}


def enter(full: str, entry: Entry) -> None:
    """Set or replace what a name stands for."""
    entries[full] = entry
    _built.pop(full, None)


def entry_of(full: str) -> Entry:
    """What was registered under a full name.

    Raises:
        ValueError: Nothing is; the nearest name is suggested.
    """
    if full not in entries:
        names = sorted(entries)
        raise ValueError(f"name: expected one of {', '.join(names)}, got {full!r}{did_you_mean(full, names)}")
    return entries[full]


def current_recipe(full: str) -> Recipe:
    """The recipe whose loss runs under a registered name in this process; its state lives as long as the process.

    The driver, which forms advantages, has objects of its own.

    Raises:
        ValueError: Nothing is registered under this name.
    """
    entry = entry_of(full)
    if full not in _built:
        _built[full] = entry.method if isinstance(entry.method, Recipe) else entry.build()
    return _built[full]


def ours(name: Any) -> str | None:
    """The name as text if it is one of a recipe, known or not; verl's own names are None."""
    name = str(name)
    return name if name.startswith(PREFIX) else None
