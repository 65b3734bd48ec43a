"""The side channel: what verl has of a batch, laid beside the call of a loss or an advantage.

Fields that the driver forms of the whole rollout batch travel in verl's batch under names of their own.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from verl.workers.utils import losses as verl_losses
from verl.workers.utils.padding import no_padding_2_padding

from infotorch.core.tokens import EXTRAS
from infotorch.integrations.verl._hooks import wrap

SHIPPED = "infotorch_"
EXTRA = "extra_"
ROWS = ("rewards", "group", "answer")


@dataclass
class Side:
    """What lies beside a call.

    Attributes:
        fields: By name.
        driven: The recipe with which an advantage is to be formed, where the trainer knows.
        prepared: What an advantage estimator found out about the whole batch, for the trainer to send on.
    """

    fields: dict[str, Any]
    driven: Any = None
    prepared: dict[str, Tensor] | None = None


_side: contextvars.ContextVar[Side | None] = contextvars.ContextVar("infotorch_verl", default=None)


def side() -> Side | None:
    """What lies beside the present call."""
    return _side.get()


@contextmanager
def beside(fields: Mapping[str, Any]) -> Iterator[Side]:
    """What a loss or an advantage called within this context finds besides verl's arguments."""
    here = Side(dict(fields))
    token = _side.set(here)
    try:
        yield here
    finally:
        _side.reset(token)


def padded(data: Any, name: str) -> Tensor:
    """A tensor of verl's batch, padded to ``(B, T)`` where it is nested."""
    value = data[name]
    return data.select(name).to_padded_tensor()[name] if value.is_nested else value


def fields_of(model_output: Any, data: Any) -> dict[str, Tensor]:
    """Fields of the record that lie in verl's micro-batch; ``extras`` under names that begin with ``extra_``."""
    found: dict[str, Tensor] = {}
    # The engine's statistics of the policy as it is; before training, those of the policy that sampled.
    source = model_output or {name: data[name] for name in EXTRAS if name in data}
    for name in ("entropy", *EXTRAS):
        if source.get(name, None) is not None:
            own = name if name in ("entropy", "top_p_entropy") else EXTRA + name
            found[own] = no_padding_2_padding(source[name], data)
    theirs = {"entropy": "old_entropy", "old_entropy": "old_entropy", "ref_log_prob": "ref_log_probs"}
    for name, own in {**theirs, "responses": "tokens"}.items():
        if name in data:
            found[own] = padded(data, name)
    rows = len(data["response_mask"])
    for name in data.keys():  # noqa: SIM118 - a TensorDict iterates over rows
        if name.startswith(SHIPPED):
            value = padded(data, name)
            found[name.removeprefix(SHIPPED)] = value.reshape(rows) if value.numel() == rows else value
    return found


def split(fields: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of the record and its ``extras``."""
    extras = {name.removeprefix(EXTRA): value for name, value in fields.items() if name.startswith(EXTRA)}
    return {name: value for name, value in fields.items() if not name.startswith(EXTRA)}, extras


def ship(prepared: Mapping[str, Tensor], lengths: Tensor | None = None) -> dict[str, Tensor]:
    """Names and tensors for verl's batch; with ``lengths`` of the rows, values per token ``(B, T)`` are nested."""
    found: dict[str, Tensor] = {}
    for name, value in prepared.items():
        if lengths is not None and value.shape[1:2] == (int(lengths.max()),):
            rows = [row[:n] for row, n in zip(value, lengths.tolist(), strict=True)]
            value = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        found[SHIPPED + name] = value
    return found


def _ppo_loss(original: Any, config: Any, model_output: Any, data: Any, dp_group: Any = None) -> Any:
    with beside(fields_of(model_output, data)):
        return original(config, model_output, data, dp_group)


wrap(verl_losses, "ppo_loss", _ppo_loss)
