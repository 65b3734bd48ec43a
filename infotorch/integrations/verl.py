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
``ppo_loss`` is wrapped, and what it was given lies beside the call. Entropies of the current policy are there if
``actor_rollout_ref.actor.calculate_entropy=True``, those of the sampling policy if verl stored them with the batch. A
recipe that needs a field that is not there raises, and says which.

Tested with verl 0.9.1.
"""

from __future__ import annotations

import contextvars
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo import core_algos
from verl.workers.utils import losses as verl_losses
from verl.workers.utils.padding import no_padding_2_padding

from infotorch.core import Aggregation
from infotorch.integrations._fields import answer_ids, sets_temperatures, turns_of
from infotorch.losses import ON_POLICY, Part, Recipe, TokenBatch, recipe, recipe_names

__all__ = ["PREFIX", "current_recipe", "register", "register_all"]

TESTED = "0.9.1"
PREFIX = "infotorch/"
_ROW_EPS = 1e-8  # verl divides a row's sum by its count plus this
_recipes: dict[str, Callable[[], Recipe]] = {}
_built: dict[str, Recipe] = {}
_beside: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("infotorch_verl", default=None)


# -- registration ----------------------------------------------------------------------------------------------------


def register(name: str, method: str | Mapping[str, Any] | Recipe, **options: Any) -> str:
    """Enter a recipe into verl's registries as ``infotorch/<name>``.

    Args:
        name: Without the prefix.
        method: Name of a recipe, a mapping for ``Recipe.from_dict``, or a recipe.
        **options: Options of the named recipe.

    Returns:
        The full name, for ``loss_mode`` and ``adv_estimator``.

    Raises:
        ValueError: Options beside a recipe that is not a name; an unknown name or option.
    """
    if options and not isinstance(method, str):
        raise ValueError(f"options: expected none beside {type(method).__name__}, got {sorted(options)}")

    def build() -> Recipe:
        if isinstance(method, Recipe):
            return method
        return recipe(method, **options) if isinstance(method, str) else Recipe.from_dict(method)

    build()  # a wrong option is refused here, not in a worker
    full = PREFIX + name
    _recipes[full] = build
    _built.pop(full, None)
    core_algos.POLICY_LOSS_REGISTRY[full] = functools.partial(_policy_loss, full)
    core_algos.ADV_ESTIMATOR_REGISTRY[full] = functools.partial(_advantage, full)
    return full


def register_all() -> list[str]:
    """Enter every recipe under its own name. Called on import; doing it again takes up what was registered since."""
    return [register(name, name) for name in recipe_names()]


def current_recipe(full: str) -> Recipe:
    """The recipe behind a registered name in this process; its state lives as long as the process.

    Raises:
        ValueError: Nothing is registered under this name.
    """
    if full not in _recipes:
        raise ValueError(f"name: expected one of {', '.join(sorted(_recipes))}, got {full!r}")
    if full not in _built:
        _built[full] = _recipes[full]()
    return _built[full]


# -- the two functions that verl calls -------------------------------------------------------------------------------


def _policy_loss(
    full: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Verl's contract of a policy loss: scalar loss, and metrics as Python numbers with the prefix ``actor/``."""
    method = current_recipe(full)
    for part in method.parts():
        if part.info.source != ON_POLICY:
            raise ValueError(
                f"loss_mode: {part.info.name!r} needs rows besides those sampled for the step (a second sample set or "
                "replay), which verl's actor does not give; use infotorch.rlvr.RLVRModule"
            )
    if sets_temperatures(method):
        raise ValueError(
            f"loss_mode: {full!r} sets a temperature for every token that is sampled, which verl's rollout does not "
            "take; use infotorch.rlvr.RLVRModule, or switch that part off (tau=0 for 'hapo')"
        )
    counts = dict(getattr(config, "global_batch_info", None) or {})
    scale = counts.get("loss_scale_factor")
    aggregation = Aggregation(loss_agg_mode, row_eps=_ROW_EPS, length=None if scale is None else float(scale))
    beside = dict(_beside.get() or {})
    extras = {name: beside.pop(name) for name in list(beside) if name not in _KNOWN}
    mask = response_mask.bool()
    batch = TokenBatch(
        log_probs=log_prob,
        old_log_probs=old_log_prob,
        mask=mask,
        advantages=advantages,
        rollout_weights=rollout_is_weights,
        turn=turns_of(mask),
        num_tokens=counts.get("batch_num_tokens"),
        num_sequences=counts.get("global_batch_size"),
        world_size=int(counts.get("dp_size") or 1),
        extras=extras,
        **beside,
    )
    with _aggregated(method, aggregation):
        out = method(batch)
    return out.loss, {f"actor/{PREFIX}{name}": float(value) for name, value in out.metrics.items()}


_KNOWN = ("entropy", "old_entropy", "top_p_entropy", "ref_log_probs", "tokens", "group", "rewards", "answer")


@contextmanager
def _aggregated(method: Recipe, aggregation: Aggregation) -> Iterator[None]:
    """Verl's aggregation for every part that does not set its own, for one call."""
    free = [part for part in method.parts() if "aggregation" in part.info.options and "aggregation" not in part.options]
    for part in free:
        part.options["aggregation"] = aggregation
    try:
        yield
    finally:
        for part in free:
            del part.options["aggregation"]


def _advantage(
    full: str, token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, config: Any = None, **further: Any
) -> tuple[Tensor, Tensor]:
    """Verl's contract of an advantage estimator: advantages and returns ``(B, T)``."""
    method = current_recipe(full)
    if method.advantage is None:
        raise ValueError(f"adv_estimator: {full!r} forms no advantages; use it as loss_mode only")
    mask = response_mask.bool()
    rewards = (token_level_rewards * mask).sum(1)
    beside = {**(_beside.get() or {}), **{k: v for k, v in further.items() if isinstance(v, Tensor)}}
    old = beside.get("old_log_probs", torch.zeros_like(token_level_rewards))
    names = {"entropys": "entropy", "old_entropy": "entropy", "ref_log_prob": "ref_log_probs", "responses": "tokens"}
    fields: dict[str, Any] = {}
    for name, value in beside.items():
        name = names.get(name, name)
        if name in ("entropy", "ref_log_probs", "tokens", "top_p_entropy", "answer"):
            fields[name] = value
    group = torch.arange(len(mask)) if index is None else answer_ids(list(index))
    batch = TokenBatch(
        log_probs=old,
        old_log_probs=old,
        mask=mask,
        rewards=rewards,
        group=group.to(mask.device),
        turn=turns_of(mask),
        trajectory=torch.arange(len(mask), device=mask.device),
        **fields,
    )
    advantages = method.prepare(batch).advantages
    assert advantages is not None
    return advantages, advantages


# -- the side channel ------------------------------------------------------------------------------------------------


@contextmanager
def beside(fields: Mapping[str, Any]) -> Iterator[None]:
    """What a loss or an advantage called within this context finds besides verl's arguments."""
    token = _beside.set(dict(fields))
    try:
        yield
    finally:
        _beside.reset(token)


def _wrap_ppo_loss() -> None:
    """Put the wrapper where verl's modules look ``ppo_loss`` up, loaded already or not."""
    original = verl_losses.ppo_loss

    @functools.wraps(original)
    def ppo_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> Any:
        with beside(_fields_of(model_output, data)):
            return original(config, model_output, data, dp_group)

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("verl.") and getattr(module, "ppo_loss", None) is original:
            module.ppo_loss = ppo_loss  # type: ignore[attr-defined]


def _fields_of(model_output: Any, data: Any) -> dict[str, Tensor]:
    """Fields of the record that lie in verl's micro-batch, padded to ``(B, T)``."""
    found: dict[str, Tensor] = {}
    if model_output.get("entropy", None) is not None:
        found["entropy"] = no_padding_2_padding(model_output["entropy"], data)
    padded = {"entropy": "old_entropy", "ref_log_prob": "ref_log_probs", "responses": "tokens"}
    for theirs, ours in padded.items():
        if theirs in data:
            found[ours] = _padded(data, theirs)
    return found


def _padded(data: Any, name: str) -> Tensor:
    return data.select(name).to_padded_tensor()[name]


def _hook_worker(worker: type[Any]) -> None:
    """Tell recipes of rollout batches and optimizer steps, which only verl's training worker sees."""
    update, step = worker.train_mini_batch, worker.train_batch

    @functools.wraps(update)
    def train_mini_batch(self: Any, data: Any) -> Any:
        for method in _built.values():
            _start_rollout(method, data)
        return update(self, data)

    @functools.wraps(step)
    def train_batch(self: Any, data: Any) -> Any:
        output = step(self, data)
        for method in _built.values():
            method.after_step()
        return output

    worker.train_mini_batch, worker.train_batch = train_mini_batch, train_batch


def _start_rollout(method: Recipe, data: Any) -> None:
    """What `Recipe.prepare` tells the parts of a loss; the advantages were formed elsewhere."""
    parts = [part for part in method.parts() if part.info.kind in ("policy", "regularizer")]
    for part in parts:
        part.start_rollout()
    parts = [part for part in parts if type(part).observe is not Part.observe]
    if not parts:
        return
    mask = _padded(data, "response_mask").bool()
    old = _padded(data, "old_log_probs")
    fields: dict[str, Any] = _fields_of({}, data)
    fields.setdefault("entropy", fields.get("old_entropy"))
    batch = TokenBatch(
        log_probs=old,
        old_log_probs=old,
        mask=mask,
        advantages=_padded(data, "advantages"),
        turn=turns_of(mask),
        **fields,
    )
    with torch.no_grad():
        for part in parts:
            part.observe(batch)


def _hook_advantages(module: Any) -> None:
    """Let advantage estimators see the whole batch, of which verl passes them rewards and mask."""
    original = module.compute_advantage

    @functools.wraps(original)
    def compute_advantage(data: Any, *args: Any, **kwargs: Any) -> Any:
        with beside({**(_beside.get() or {}), **dict(data.batch.items())}):
            return original(data, *args, **kwargs)

    module.compute_advantage = compute_advantage


def _hook_trainer(module: Any) -> None:
    """Fetch the sampling policy's entropies for advantages that need them; verl's trainer leaves them in its store."""
    trainer = module.PPOTrainer
    original = trainer._compute_advantage

    @functools.wraps(original)
    def compute(self: Any, batch: Any, metrics: Any) -> Any:
        name = str(self.config.algorithm.adv_estimator)
        if name not in _recipes or not {"entropy", "sampling_entropy"} & current_recipe(name).required:
            return original(self, batch, metrics)
        stored = module.tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["entropy"])
        with beside({"entropy": stored.to_padded_tensor()["entropy"]}):
            return original(self, batch, metrics)

    trainer._compute_advantage = compute


_HOOKS: dict[str, Callable[[Any], None]] = {
    "verl.workers.engine_workers": lambda module: _hook_worker(module.TrainingWorker),
    "verl.trainer.ppo.ray_trainer": _hook_advantages,
    "verl.trainer.ppo.v1.trainer_base": _hook_trainer,
}


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Hooks modules of verl as soon as they are loaded, which is after this one where verl itself imports it."""

    def __init__(self) -> None:
        self.waiting = dict(_HOOKS)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find a module as everybody does, and hook it after it has run."""
        hook = self.waiting.pop(fullname, None)
        spec = None if hook is None else importlib.util.find_spec(fullname)
        if hook is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            hook(module)

        spec.loader.exec_module = exec_module
        return spec


def _watch() -> None:
    finder = _WhenLoaded()
    for name in [name for name in _HOOKS if name in sys.modules]:
        finder.waiting.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, finder)


_found = version("verl")
if not _found.startswith(TESTED):
    raise ImportError(f"verl: expected {TESTED}, which this adapter is tested with, got {_found}")
_wrap_ppo_loss()
_watch()
register_all()
