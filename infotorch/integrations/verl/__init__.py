r"""Every recipe of `infotorch.losses` in verl's registries, under ``infotorch/<name>``.

Importing this module registers them. verl imports what ``VERL_USE_EXTERNAL_MODULES`` names in every process, driver and
workers alike::

    export VERL_USE_EXTERNAL_MODULES=infotorch.integrations.verl
    python -m verl.trainer.main_ppo \
        algorithm.adv_estimator=infotorch/grpo \
        actor_rollout_ref.actor.policy_loss.loss_mode=infotorch/clip_cov ...

``loss_mode`` takes the policy loss and the regularizers of a recipe, ``adv_estimator`` its reward shaping and its
advantage. Options: :func:`register` enters a recipe with options under a name of its own; put the call in a module and
name that module in the variable.

verl passes neither entropies nor reference log-probabilities to a loss. They reach it by a side channel: verl's
``ppo_loss`` is wrapped, and what it was given lies beside the call. What a loss needs of whole groups is formed on the
driver, which sees the whole rollout batch, and travels in verl's batch. A recipe that needs a field that is not there
raises, and says which; where the configuration tells, before anything is started.

State of recipes goes into verl's checkpoints: that of advantages by the driver, that of losses by the actor.

Tested with verl 0.9.1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from verl.trainer.ppo import core_algos

from infotorch.integrations.verl import _trainers as _trainers
from infotorch.integrations.verl import _worker as _worker
from infotorch.integrations.verl._advantage import advantage, forget
from infotorch.integrations.verl._checks import check_config
from infotorch.integrations.verl._loss import policy_loss
from infotorch.integrations.verl._registry import PREFIX, Answers, Entry, current_recipe, enter
from infotorch.losses import Recipe, recipe_names
from infotorch.losses._trial import try_out

__all__ = ["PREFIX", "check_config", "current_recipe", "register", "register_all"]

TESTED = "0.9.1"


def register(name: str, method: str | Mapping[str, Any] | Recipe, *, answers: Answers = "pred", **options: Any) -> str:
    """Enter a recipe into verl's registries as ``infotorch/<name>``.

    Args:
        name: Without the prefix.
        method: Name of a recipe, a mapping for ``Recipe.from_dict``, or a recipe.
        answers: For recipes that compare extracted answers: the key under which the reward function returns them
            beside ``score``, or a function from the responses' tokens, one vector each, to one hashable or None each.
            None, an empty text and ``"[INVALID]"`` stand for no answer.
        **options: Options of the named recipe.

    Returns:
        The full name, for ``loss_mode`` and ``adv_estimator``.

    Raises:
        ValueError: Options beside a recipe that is not a name; an unknown name or option, an option out of range.
    """
    if options and not isinstance(method, str):
        raise ValueError(f"options: expected none beside {type(method).__name__}, got {sorted(options)}")
    entry = Entry(method, dict(options), answers)
    built = entry.build()  # a wrong option is refused here, not in a worker
    if options or not isinstance(method, str):
        try_out(built)
    full = PREFIX + name
    enter(full, entry)
    forget(full)
    core_algos.POLICY_LOSS_REGISTRY[full] = functools.partial(policy_loss, full)
    core_algos.ADV_ESTIMATOR_REGISTRY[full] = functools.partial(advantage, full)
    return full


def register_all() -> list[str]:
    """Enter every recipe under its own name. Called on import; doing it again takes up what was registered since."""
    return [register(name, name) for name in recipe_names()]


_found = version("verl")
if not _found.startswith(TESTED):
    raise ImportError(f"verl: expected {TESTED}, which this adapter is tested with, got {_found}")
register_all()
