"""Hooks of verl's two trainers, which run on the driver."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from infotorch.integrations.verl import _advantage
from infotorch.integrations.verl._advantage import Driver, driver, present_driver
from infotorch.integrations.verl._checks import check_config, names_in
from infotorch.integrations.verl._hooks import when_loaded, wrap
from infotorch.integrations.verl._registry import PREFIX, ours
from infotorch.integrations.verl._side import beside, ship, side
from infotorch.integrations.verl._state import load_state, save_state


def adopt(config: Any) -> None:
    """Check a trainer's configuration, and remember which loss its actors use.

    Raises:
        ValueError: See :func:`check_config`.
    """
    check_config(config)
    _advantage.set_loss_mode(names_in(config)[1])


def _started(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    adopt(kwargs["config"] if "config" in kwargs else args[0])
    original(self, *args, **kwargs)


def _driver_of(config: Any) -> Driver:
    return driver(*names_in(config))


# -- the batch -------------------------------------------------------------------------------------------------------


def _compute_advantage(original: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
    """Let an estimator see the whole batch, of which verl passes it rewards and mask; send on what a loss needs."""
    fields = {**data.non_tensor_batch, **dict(data.batch.items())}
    here = side()
    if here is not None:  # the trainer with the transfer queue sends on by itself
        here.fields |= {name: value for name, value in fields.items() if name not in here.fields}
        return original(data, *args, **kwargs)
    estimator = ours(kwargs["adv_estimator"] if "adv_estimator" in kwargs else args[0])
    with beside(fields) as here:
        data = original(data, *args, **kwargs)
    driven = present_driver(estimator)
    if driven.acts or driven.rows:
        data.batch.update(ship(_to_send(driven, here.prepared, fields, data.batch), None))
    return data


def _to_send(
    driven: Driver, prepared: Mapping[str, Tensor] | None, rows: Mapping[str, Any], done: Any
) -> Mapping[str, Tensor]:
    """What the driver found for the loss; formed now where verl's own estimator was used."""
    if prepared is None:
        prepared = driven.prepare({**rows, **dict(done.items())})
    return {name: value for name, value in prepared.items() if name != "advantages"}


def _compute_advantage_tq(original: Any, self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
    """The same where the batch lies in verl's transfer queue, of which this method fetches a few fields."""
    driven = _driver_of(self.config)
    if not (driven.acts or driven.rows):
        return original(self, batch, metrics)
    queue = _queue()
    rows = _fetch(queue, batch, driven.wanted())
    rows["padding"] = [bool(tag.get("is_padding", False)) for tag in batch.tags]
    with beside(rows) as here:
        here.driven = driven
        batch = original(self, batch, metrics)
    done: dict[str, Any] = {}
    if here.prepared is None:
        done = _fetch(
            queue, batch, ["uid", "response_mask", "rm_scores", "token_level_rewards", "old_log_probs", "advantages"]
        )
    sent = _to_send(driven, here.prepared, rows, done)
    if sent:
        lengths = queue.kv_batch_get(batch.keys, batch.partition_id, ["advantages"])["advantages"].offsets().diff()
        fields = TensorDict(ship(sent, lengths), batch_size=len(batch.keys))
        batch = queue.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
    for part in driven.recipe.parts():
        metrics.update({f"actor/{PREFIX}{name}": float(value) for name, value in part.rollout_metrics().items()})
    return batch


def _queue() -> Any:
    import transfer_queue

    return transfer_queue


def _fetch(queue: Any, batch: Any, names: list[str]) -> dict[str, Any]:
    """The stored ones of these fields: tensors padded to ``(B, T)``, others as lists."""
    asked = sorted({*names, "uid"})  # the queue leaves out what it does not have; this one it has
    stored = queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=asked)
    found: dict[str, Any] = {}
    for name in (name for name in names if name in stored):
        value = stored[name]
        nested = isinstance(value, Tensor) and value.is_nested
        found[name] = stored.select(name).to_padded_tensor()[name] if nested else value
    return found


def _old_log_probs(original: Any, self: Any, batch: Any) -> Any:
    """Keep the sampling policy's entropies in the batch, out of which the older trainer takes them."""
    found = original(self, batch)
    if any(names_in(self.config)):
        found[0].batch["old_entropy"] = found[0].batch["entropys"]
    return found


# -- checkpoints -----------------------------------------------------------------------------------------------------


def _save(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Before verl's own, which ends with a note that the checkpoint is complete."""
    driven = _driver_of(self.config)
    if driven.acts:
        save_state(Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}", driven.recipe)
    return original(self, *args, **kwargs)


def _load(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Before verl's own, so that another recipe is refused before a model is loaded."""
    driven, folder = _driver_of(self.config), _resumes_from(self.config)
    if folder is not None:
        load_state(folder, driven.recipe if driven.acts else None)
    return original(self, *args, **kwargs)


def _resumes_from(config: Any) -> Path | None:
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    trainer = config.trainer
    if trainer.resume_mode == "disable":
        return None
    if trainer.resume_mode == "resume_path":
        return Path(os.getcwd()) / trainer.resume_from_path
    latest = find_latest_ckpt_path(os.path.join(os.getcwd(), trainer.default_local_dir))
    return None if latest is None else Path(latest)


# -- where they go ---------------------------------------------------------------------------------------------------


def _validated(original: Any, *args: Any, **kwargs: Any) -> Any:
    """What a launch checks first, in the process that was started by hand."""
    found = original(*args, **kwargs)
    check_config(kwargs["config"] if "config" in kwargs else args[0])
    return found


def _hook_trainer(trainer: Any) -> None:
    wrap(trainer, "__init__", _started)
    wrap(trainer, "_save_checkpoint", _save)
    wrap(trainer, "_load_checkpoint", _load)


@when_loaded("verl.utils.config")
def _hook_config(module: Any) -> None:
    wrap(module, "validate_config", _validated)


@when_loaded("verl.trainer.ppo.ray_trainer")
def _hook_ray_trainer(module: Any) -> None:
    wrap(module, "compute_advantage", _compute_advantage)
    wrap(module.RayPPOTrainer, "_compute_old_log_prob", _old_log_probs)
    _hook_trainer(module.RayPPOTrainer)


@when_loaded("verl.trainer.ppo.v1.trainer_base")
def _hook_v1_trainer(module: Any) -> None:
    wrap(module.PPOTrainer, "_compute_advantage", _compute_advantage_tq)
    _hook_trainer(module.PPOTrainer)
