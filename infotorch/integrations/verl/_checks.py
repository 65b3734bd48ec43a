"""Refuse a run before it starts: what verl cannot give a recipe, and settings that leave a field out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf

from infotorch.core import Aggregation
from infotorch.integrations._fields import sets_temperatures
from infotorch.integrations.verl._engine import ENGINES
from infotorch.integrations.verl._registry import current_recipe, entry_of, ours
from infotorch.losses import ON_POLICY, Part, Recipe
from infotorch.losses.ppo import AggregationLike

_ELSEWHERE = "use RecipeGRPOTrainer of infotorch.integrations.trl, or infotorch.rlvr.RLVRModule"


def of_kinds(method: Recipe, *kinds: str) -> list[Part]:
    """Parts of some kinds."""
    return [part for part in method.parts() if part.info.kind in kinds]


def loss_parts(method: Recipe) -> list[Part]:
    """What acts in a loss: the others form rewards and advantages."""
    return of_kinds(method, "policy", "regularizer")


def advantage_parts(method: Recipe) -> list[Part]:
    """What shapes rewards and forms advantages."""
    return of_kinds(method, "reward", "advantage")


def required(parts: Iterable[Part]) -> set[str]:
    """Optional fields of the record that some part reads."""
    return {name for part in parts for name in part.info.requires}


def by_length(aggregation: AggregationLike) -> bool:
    """Whether sums are divided by the length to which rows are padded, for want of a constant."""
    found = Aggregation.of(aggregation)
    return found.mode.endswith("-norm") and found.length is None


def statistics(method: Recipe) -> dict[str, Any]:
    """Options of ``token_stats`` for the parts of a loss; without ``extras`` verl's own statistics do."""
    return Recipe(method.policy, regularizers=of_kinds(method, "regularizer")).token_options


def check_loss(full: str, method: Recipe) -> None:
    """Refuse a recipe whose loss verl's actor cannot feed, with the reason.

    Raises:
        ValueError: It wants rows besides those of the step, temperatures per token, or a pass over a whole optimizer
            step.
    """
    for part in loss_parts(method):
        name = part.info.name
        if part.info.source != ON_POLICY:
            pieces = ""
            if name == "self_imitation":
                pieces = (
                    ". The rest of 'spear' needs no replay: adv_estimator=infotorch/dr_bot or infotorch/tool_reward, "
                    "loss_mode=infotorch/clip_cov"
                )
            raise ValueError(
                f"loss_mode: {full!r}: {name!r} needs rows besides those sampled for the step (a second sample set or "
                f"replay), which verl's actor does not give; {_ELSEWHERE}{pieces}"
            )
        if part.sees_step:
            raise ValueError(
                f"loss_mode: {full!r}: {name!r} wants a forward pass over the whole optimizer step before it, which "
                "verl's actor does not make; choose bounds_per='micro_batch'"
            )
    if sets_temperatures(method):
        raise ValueError(
            f"loss_mode: {full!r} sets a temperature for every token that is sampled, which verl's rollout does not "
            f"take; {_ELSEWHERE}, or switch that part off (tau=0 for 'hapo')"
        )


def check_advantage(full: str, method: Recipe) -> None:
    """Refuse a recipe that forms no advantages, or forms them from what verl does not compute.

    Raises:
        ValueError: See above.
    """
    if method.advantage is None:
        raise ValueError(f"adv_estimator: {full!r} forms no advantages; use it as loss_mode only")
    for part in advantage_parts(method):
        if type(part).auxiliary is not Part.auxiliary:
            raise ValueError(
                f"adv_estimator: {full!r}: {part.info.name!r} scores the responses at a second temperature, which verl "
                f"does not; {_ELSEWHERE}"
            )


def check_config(config: Any) -> None:
    """Refuse verl's configuration where it names a recipe of ours that cannot train with it.

    Warns:
        UserWarning: A loss is divided by the length of padded rows.

    Raises:
        ValueError: An unknown name, a recipe that verl cannot feed, parts of the two recipes that contradict each
            other, or a setting that leaves a field out; the message says what to set.
    """
    estimator, loss_mode = names_in(config)
    losses = [] if loss_mode is None else loss_parts(current_recipe(loss_mode))
    formers = [] if estimator is None else advantage_parts(entry_of(estimator).build())
    if loss_mode is not None:
        check_loss(loss_mode, current_recipe(loss_mode))
    if estimator is not None:
        check_advantage(estimator, entry_of(estimator).build())
    together(estimator, loss_mode)

    def setting(path: str) -> Any:
        return OmegaConf.select(config, path, default=None)

    actor = "actor_rollout_ref.actor."
    by = f"{estimator or ''} {loss_mode or ''}".strip()
    extras = {} if loss_mode is None else statistics(current_recipe(loss_mode)).get("extras", ())
    if ("entropy" in required(losses) or extras) and not (
        setting(actor + "calculate_entropy") or setting(actor + "entropy_coeff")
    ):
        raise ValueError(f"{by} needs the policy's entropy: set {actor}calculate_entropy=True")
    strategy, fused = setting(actor + "strategy"), setting("actor_rollout_ref.model.use_fused_kernels")
    if extras and (fused or (strategy or "fsdp") not in ENGINES):
        raise ValueError(
            f"{by} needs {', '.join(extras)}, which is computed in verl's FSDP engine from the logits: set "
            f"{actor}strategy to fsdp or fsdp2 and actor_rollout_ref.model.use_fused_kernels=False"
        )
    if "ref_log_probs" in required([*losses, *formers]) and not (
        setting(actor + "use_kl_loss") or setting("algorithm.use_kl_in_reward")
    ):
        raise ValueError(
            f"{by} needs a reference policy: set {actor}use_kl_loss=True, with {actor}kl_loss_coef=0 where the recipe "
            "has a KL term of its own"
        )
    modes = [part.options.get("aggregation", setting(actor + "loss_agg_mode") or "token-mean") for part in losses]
    if any(by_length(mode) for mode in modes) and not setting(actor + "loss_scale_factor"):
        warnings.warn(
            f"{by} divides by the length to which a micro-batch is padded, which depends on how verl splits the batch: "
            f"set {actor}loss_scale_factor to a constant",
            stacklevel=2,
        )
    bypassed = setting("algorithm.rollout_correction.bypass_mode")
    if loss_mode is not None and bypassed and setting("trainer.use_v1") is False:
        raise ValueError(
            f"loss_mode: verl's older trainer replaces {loss_mode} in bypass mode: set "
            "algorithm.rollout_correction.bypass_mode=False or trainer.use_v1=True"
        )
    sampling = {"entropy", "sampling_entropy"} & required([*_early(losses), *formers])
    if sampling and bypassed:
        raise ValueError(
            f"{by} needs the sampling policy's entropy, which verl computes with old log-probabilities: set "
            "algorithm.rollout_correction.bypass_mode=False"
        )


def _early(parts: Iterable[Part]) -> list[Part]:
    """Parts of a loss that look at the rollout batch before it is trained on."""
    return [
        part
        for part in parts
        if "sampling_entropy" in part.info.requires
        or type(part).observe is not Part.observe
        or type(part).rearrange is not Part.rearrange
    ]


def names_in(config: Any) -> tuple[str | None, str | None]:
    """Names of ours for ``adv_estimator`` and ``loss_mode`` in verl's configuration.

    Raises:
        ValueError: A name with our prefix that is not registered.
    """
    found = []
    for path in ("algorithm.adv_estimator", "actor_rollout_ref.actor.policy_loss.loss_mode"):
        name = ours(OmegaConf.select(config, path, default=None))
        if name is not None:
            try:
                entry_of(name)
            except ValueError as error:
                raise ValueError(
                    f"{path}: {error}; name the module that registers it in VERL_USE_EXTERNAL_MODULES"
                ) from None
        found.append(name)
    return found[0], found[1]


def together(estimator: str | None, loss_mode: str | None) -> Recipe | None:
    """One new recipe of the estimator's rewards and advantage and the loss's policy and regularizers.

    Raises:
        ValueError: Parts of the two contradict each other.
    """
    former = None if estimator is None else entry_of(estimator).build()
    loss = None if loss_mode is None else entry_of(loss_mode).build()
    if former is None and loss is None:
        return None
    return Recipe(
        "ppo" if loss is None else loss.policy,
        advantage=None if former is None else former.advantage,
        regularizers=[] if loss is None else of_kinds(loss, "regularizer"),
        rewards=[] if former is None else of_kinds(former, "reward"),
    )
