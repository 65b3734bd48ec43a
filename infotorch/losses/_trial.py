"""A trial run of a recipe on a batch made up for it."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from infotorch.core.distributed import one_process
from infotorch.losses import registry
from infotorch.losses.batch import TokenBatch
from infotorch.losses.recipe import Recipe


def try_out(recipe: Recipe) -> None:
    """Run a recipe once on a small made-up batch, so that options out of range are refused where they are written.

    Only a new recipe of the same options is run, and no random number is drawn: the given one and the generators keep
    their state. Recipes with parts that are not in the registry, or that read ``extras`` of a user's own, are left
    alone.

    Raises:
        ValueError: An option out of range; the message names the range.

    >>> from infotorch.losses import recipe
    >>> try_out(recipe("clip_cov", ratio=2.0))
    Traceback (most recent call last):
    ValueError: ratio: expected a number in [0, 1], got 2.0
    """
    if any(type(part) is not registry.info(part.info.name).module for part in recipe.parts()):
        return
    spread = torch.linspace(0.1, 1.0, 24).reshape(4, 6)
    extras = {name: torch.full((4, 6), 0.5) for name in recipe.token_options.get("extras", ())}
    extras |= {"tempered_log_probs": -spread, "tool_turns": torch.zeros(4, dtype=torch.long)}
    if any(name.startswith("extras.") and name.removeprefix("extras.") not in extras for name in recipe.required):
        return
    batch = TokenBatch(
        log_probs=(-spread).requires_grad_(),
        old_log_probs=-spread.flip(0),
        ref_log_probs=-spread.flip(1),
        entropy=spread.clone().requires_grad_(),
        top_p_entropy=extras.pop("top_p_entropy", None),
        mask=torch.ones(4, 6, dtype=torch.bool),
        rewards=torch.tensor([0.0, 1.0, 1.0, 0.0]),
        group=torch.tensor([0, 0, 1, 1]),
        answer=torch.tensor([0, 1, 1, 2]),
        tokens=torch.zeros(4, 6, dtype=torch.long),
        turn=torch.zeros(4, 6, dtype=torch.long),
        trajectory=torch.arange(4),
        extras=extras,
    )
    if recipe.advantage is None:
        batch = batch.replace(advantages=torch.tensor([-1.0, 1.0, 1.0, -1.0]))
    with warnings.catch_warnings(), one_process(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        trial = Recipe.from_dict(_without_generators(recipe.to_dict()))
        if trial.wants_auxiliary:
            trial.auxiliary(batch)
        trial(trial.prepare(batch))
        trial.after_step()


def _without_generators(spec: Any) -> Any:
    """A specification whose parts draw from torch's own generator."""
    if isinstance(spec, list):
        return [_without_generators(entry) for entry in spec]
    if not isinstance(spec, dict):
        return spec
    return {name: _without_generators(x) for name, x in spec.items() if not isinstance(x, torch.Generator)}
