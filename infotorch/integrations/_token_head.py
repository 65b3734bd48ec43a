"""A language model's head that returns the token core's statistics instead of logits, in the same forward pass."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core import TokenStats, token_stats, token_stats_from_hidden

# Where configurations of transformers keep a factor on the logits.
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")


class TokenHead:
    """The last statistics a model computed, and the options with which it computes them.

    Args:
        model: Causal language model of transformers, already given TRL's fused head.
        temperature: Divides the logits.
        options: Options of :func:`infotorch.core.token_stats` (``extras``, ``top_p`` ...).
        fp32: Whether the projection runs in float32.
        output: Builds what the forward pass returns from its fields, those of TRL's ``FusedCausalLMOutput``.

    After a call with ``fused_lm_head=True`` :attr:`stats` holds statistics of shape ``(B, L - 1)``, 0 where the label
    is -100.
    """

    def __init__(
        self,
        model: Any,
        *,
        temperature: float,
        options: Mapping[str, Any],
        fp32: bool,
        output: Callable[..., Any],
    ) -> None:
        self.temperature, self.options, self.fp32, self.output = temperature, dict(options), fp32, output
        self.stats: TokenStats | None = None
        self._seen: list[TokenStats] | None = None
        self.config = model.config.get_text_config()
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        self.scale = logit_scale(self.config)
        before = model.forward

        @functools.wraps(type(model).forward)  # `generate` checks its arguments against this signature
        def forward(net: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
            return self(net, *args, **kwargs) if fused_lm_head else before(*args, **kwargs)

        model.forward = types.MethodType(forward, model)

    def __call__(self, net: Any, *args: Any, labels: Tensor, **kwargs: Any) -> Any:
        """Run the backbone, and the head on the positions that have a label."""
        # Backbone and head are looked up on each call: wrappers such as FSDP and PEFT replace them.
        states = net.base_model(*args, **kwargs, use_cache=False)
        head: Any = net.get_output_embeddings()
        hidden = states.last_hidden_state[:, :-1].to(head.weight.device)
        labels = labels[:, 1:].to(hidden.device)
        mask = labels != -100
        weight, bias = whole(head.weight), None if head.bias is None else whole(head.bias)
        if self.fp32:
            hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
        elif torch.is_autocast_enabled(hidden.device.type):
            kind = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        self.stats = self.statistics(hidden, weight, bias, labels.clamp(min=0), mask)
        if self._seen is not None:
            self._seen.append(self.stats)
        loss = -self._log_probs.sum() / mask.sum().clamp(min=1)
        return self.output(
            loss=loss,
            log_probs=self._log_probs,
            entropy=self.stats.entropy,
            label_mask=mask,
            aux_loss=self._router_loss(states, kwargs),
        )

    def statistics(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, mask: Tensor
    ) -> TokenStats:
        """Token statistics of the head; without the logits where they are linear in the hidden states."""
        common: dict[str, Any] = {"temperature": self.temperature, "mask": mask, **self.options}
        if self.softcap is None and self.scale == 1.0:
            return token_stats_from_hidden(hidden, weight.to(hidden.dtype), labels, bias=bias, **common)
        logits = self.scale * nn.functional.linear(hidden, weight.to(hidden.dtype), bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return token_stats(logits, labels, **common)

    @contextmanager
    def recording(self, temperature: float) -> Iterator[list[TokenStats]]:
        """Divide the logits by another temperature within this context, and keep the statistics of every call."""
        before, self.temperature, self._seen = self.temperature, temperature, []
        try:
            yield self._seen
        finally:
            self.temperature, self._seen = before, None

    @property
    def _log_probs(self) -> Tensor:
        assert self.stats is not None
        assert self.stats.log_probs is not None
        return self.stats.log_probs

    def _router_loss(self, states: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        if not kwargs.get("output_router_logits"):
            return None
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        loss: Any = load_balancing_loss_func(
            states.router_logits,
            self.config.num_experts,
            self.config.num_experts_per_tok,
            kwargs.get("attention_mask"),
        )
        return loss


def logit_scale(config: Any) -> float:
    """The factor by which a configuration of transformers multiplies its logits.

    >>> logit_scale(types.SimpleNamespace(logits_scaling=4.0, model_type="granite"))
    0.25
    """
    for name in _SCALES:
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


def whole(parameter: Tensor) -> Tensor:
    """The full tensor of one that is sharded, as FSDP's parameters and tensor-parallel logits are."""
    gather: Any = getattr(parameter, "full_tensor", None)
    full: Any = gather() if callable(gather) else parameter
    return full
