"""What a recipe needs of TRL's trainer, refused before a model is loaded where it is not there."""

from __future__ import annotations

import dataclasses
from typing import Any

from infotorch.integrations._fields import sets_temperatures
from infotorch.losses import Recipe
from infotorch.losses._trial import try_out

TESTED = "1.16"
# Arguments of GRPOConfig that shape the loss; with a recipe they would be ignored, so they must stand at their default.
_DECIDED_BY_RECIPE = (
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "scale_rewards",
    "multi_objective_aggregation",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
)


def check(recipe: Recipe, config: Any, *, answers: Any, extras: Any, rollout_func: Any) -> None:
    """Refuse what could only fail later or be ignored silently.

    Args:
        recipe: What is to be trained with.
        config: The ``GRPOConfig``, or None for its defaults.
        answers: The trainer's argument of that name, like the next two.
        extras: Likewise.
        rollout_func: Likewise.

    Raises:
        ImportError: Another version of TRL than the tested one.
        ValueError: Something is missing or contradicts the recipe, an option of it is out of range.
    """
    import trl

    if not trl.__version__.startswith(TESTED + "."):
        raise ImportError(f"trl: expected {TESTED}.*, which this trainer is tested with, got {trl.__version__}")
    try_out(recipe)
    config = trl.GRPOConfig if config is None else config
    _check_loss_arguments(config, {f.name: f.default for f in dataclasses.fields(trl.GRPOConfig)})
    _check_sampling(recipe, config, rollout_func)
    if "answer" in recipe.required and answers is None:
        raise ValueError("answers: this recipe needs TokenBatch.answer; pass a function of the completions")
    given = {f"extras.{name}" for name in recipe.token_options.get("extras", ())}
    if recipe.wants_auxiliary:
        given.add("extras.tempered_log_probs")
    missing = sorted(name for name in recipe.required if name.startswith("extras.") and name not in given)
    if missing and extras is None:
        raise ValueError(f"extras: this recipe needs {', '.join(missing)}; pass a function that returns them")
    needs_reference, beta = "ref_log_probs" in recipe.required, getattr(config, "beta", 0.0)
    if needs_reference and not beta:
        raise ValueError(
            "args.beta: this recipe needs a reference model, which TRL loads for a beta other than 0, got 0"
        )
    if beta and not needs_reference:
        raise ValueError(f"args.beta: the recipe has no KL term, got beta={beta}; give it the regularizer 'kl'")


def _check_loss_arguments(config: Any, defaults: dict[str, Any]) -> None:
    for name in _DECIDED_BY_RECIPE:
        value = getattr(config, name, defaults.get(name))
        if name in defaults and value != defaults[name] and not (name == "scale_rewards" and value == "group"):
            raise ValueError(
                f"args.{name}: the recipe decides the loss; expected the default {defaults[name]!r}, got {value!r}"
            )


def _check_sampling(recipe: Recipe, config: Any, rollout_func: Any) -> None:
    """Recipes that sample otherwise than TRL does, or train on rows that it did not sample."""
    apart = [part.info.name for part in recipe.parts() if part.replays_apart]
    if apart:
        raise ValueError(
            f"recipe: {apart[0]!r} wants optimizer steps of their own for repeated rows, of which TRL's loop has none; "
            "expected combine='sum', which trains on them together with the others"
        )
    tempered = sets_temperatures(recipe)
    if not (tempered or recipe.wants_auxiliary):
        return
    what = "a temperature for every token" if tempered else "a second sample set at another temperature"
    engines = {
        "rollout_func": rollout_func is not None,
        "args.use_vllm": tempered and getattr(config, "use_vllm", False),
        "args.use_transformers_continuous_batching": tempered
        and getattr(config, "use_transformers_continuous_batching", False),
    }
    for name, used in engines.items():
        if used:
            off = ", or switch that part off (tau=0 for 'hapo')" if tempered else ""
            raise ValueError(
                f"{name}: this recipe needs {what}, which this way of sampling does not take; use transformers' own "
                f"generation{off}"
            )
    if "temperature" in (getattr(config, "generation_kwargs", None) or {}):
        raise ValueError(
            f"args.generation_kwargs: this recipe needs {what}, which a fixed temperature there would override; set "
            "args.temperature instead"
        )
