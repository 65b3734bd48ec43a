"""Hooks of verl's training worker: what only it sees of rollout batches, optimizer steps and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from verl.utils.device import get_device_name, get_torch_device

from infotorch.core import distributed
from infotorch.integrations._fields import turns_of
from infotorch.integrations.verl._checks import loss_parts, statistics
from infotorch.integrations.verl._engine import computing
from infotorch.integrations.verl._hooks import when_loaded, wrap
from infotorch.integrations.verl._registry import current_recipe, ours
from infotorch.integrations.verl._side import fields_of, padded, split
from infotorch.integrations.verl._state import load_state, save_state
from infotorch.losses import Part, Recipe, TokenBatch


def recipe_of(worker: Any) -> Recipe | None:
    """The recipe that a worker trains with; None for critics, references and verl's own losses.

    It is read off the worker's loss function: a process may hold several workers, and recipes that none uses.
    """
    bound = getattr(getattr(worker, "loss_fn", None), "keywords", {})
    loss = getattr(bound.get("config"), "policy_loss", None)
    name = ours(None if loss is None else loss.get("loss_mode", None))
    return None if name is None else current_recipe(name)


def start_rollout(method: Recipe, data: Any) -> None:
    """What `Recipe.prepare` tells the parts of a loss; advantages were formed, and rows rearranged, on the driver."""
    parts = loss_parts(method)
    for part in parts:
        part.start_rollout()
    parts = [part for part in parts if type(part).observe is not Part.observe]
    if not parts:
        return
    device = torch.device(get_device_name() if get_torch_device().is_available() else "cpu")
    method.to(device)
    mask = padded(data, "response_mask").bool()
    old = padded(data, "old_log_probs")
    fields, extras = split(fields_of({}, data))
    fields.setdefault("entropy", fields.get("old_entropy"))
    tensors = {"log_probs": old, "old_log_probs": old, "mask": mask, "advantages": padded(data, "advantages")}
    tensors |= {"turn": turns_of(mask), **fields}
    given: dict[str, Any] = {name: value.to(device) for name, value in tensors.items() if value is not None}
    batch = TokenBatch(**given, extras={name: value.to(device) for name, value in extras.items()})
    with torch.no_grad():
        for part in parts:
            part.observe(batch)


def _train_mini_batch(original: Any, self: Any, data: Any) -> Any:
    method = recipe_of(self)
    if method is not None:
        start_rollout(method, data)
    return original(self, data)


def _train_batch(original: Any, self: Any, data: Any) -> Any:
    method = recipe_of(self)
    if method is None:
        return original(self, data)
    with computing(statistics(method)):
        output = original(self, data)
    for part in loss_parts(method):
        part.after_step()
    return output


def _infer_batch(original: Any, self: Any, data: Any) -> Any:
    """The pass for old log-probabilities, in which histories and anchors want the same statistics."""
    method = recipe_of(self)
    with computing({} if method is None else statistics(method)):
        return original(self, data)


def _save(original: Any, self: Any, local_path: Any, *args: Any, **kwargs: Any) -> Any:
    found = original(self, local_path, *args, **kwargs)
    method = recipe_of(self)
    if method is not None and local_path is not None:
        save_state(local_path, method, distributed.rank())
    return found


def _load(original: Any, self: Any, local_path: Any, *args: Any, **kwargs: Any) -> Any:
    """Before verl's own, so that another recipe is refused before a model is loaded."""
    if local_path is not None:
        load_state(local_path, recipe_of(self), distributed.rank())
    return original(self, local_path, *args, **kwargs)


@when_loaded("verl.workers.engine_workers")
def _hook_worker(module: Any) -> None:
    worker = module.TrainingWorker
    wrap(worker, "train_mini_batch", _train_mini_batch)
    wrap(worker, "train_batch", _train_batch)
    wrap(worker, "infer_batch", _infer_batch)
    wrap(worker, "save_checkpoint", _save)
    wrap(worker, "load_checkpoint", _load)
