"""Further statistics of the logits from verl's FSDP engine: the nucleus's entropy, the entropy covariance.

verl's engines compute log-probability and entropy. What a recipe asks for besides comes from the token core, out of the
same logits, beside the entropy that verl computes.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from verl.utils import tensordict_utils as tu

from infotorch.core import token_stats
from infotorch.integrations._token_head import whole
from infotorch.integrations.verl._hooks import when_loaded, wrap

ENGINES = ("fsdp", "fsdp2")
"""Values of ``actor.strategy`` whose engine can be asked."""
_wanted: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("infotorch_verl_stats", default=None)


@contextmanager
def computing(options: Mapping[str, Any]) -> Iterator[None]:
    """Within this context the engine's outputs hold what these options of ``token_stats`` ask for as ``extras``."""
    token = _wanted.set(options)
    try:
        yield
    finally:
        _wanted.reset(token)


def _outputs(
    original: Any, self: Any, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
) -> dict[str, Tensor]:
    """Model outputs with the statistics, nested as verl's own are."""
    found = original(
        self,
        output=output,
        output_args=output_args,
        micro_batch=micro_batch,
        logits_processor_func=logits_processor_func,
    )
    options = _wanted.get() or {}
    # Without an entropy this is another pass (a reference's), or one whose logits verl's backward pass overwrites.
    if not options.get("extras") or found.get("entropy") is None:
        return found
    if tu.get_non_tensor_data(data=micro_batch, key="use_fused_kernels", default=False):
        raise ValueError(f"{', '.join(options['extras'])}: verl's fused kernels give no logits to compute them from")
    offsets = micro_batch["input_ids"].offsets()
    logits = whole(output.logits)
    packed = tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)
    if packed:
        logits, temperature = logits.squeeze(0), output_args["temperature_rmpad"]
    else:
        lengths = offsets.diff()
        logits = logits[torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]]
        temperature = output_args["temperature"].repeat_interleave(lengths)
    labels = output_args["input_ids_rmpad_rolled"]
    stats = token_stats(logits, labels, temperature=temperature.float().clamp(min=1e-8), **options)
    for name in options["extras"]:
        values = getattr(stats, name)
        values = self._gather_and_unpad_packed(values, output_args["pad_size"]) if packed else values
        found[name] = torch.nested.nested_tensor_from_jagged(values, offsets)
    return found


@when_loaded("verl.workers.engine.fsdp.transformer_impl")
def _hook_fsdp(module: Any) -> None:
    wrap(module.FSDPEngineWithLMHead, "prepare_model_outputs", _outputs)
