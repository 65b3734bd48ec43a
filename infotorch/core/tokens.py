"""Per-token log-probability and entropy of a language model, with their gradients in closed form.

:func:`token_stats` reads logits; :func:`token_stats_from_hidden` reads hidden states and the output weight
and never builds the ``[N, V]`` logits. Both return a :class:`TokenStats`. What they spare a training step:

- One pass over the logits; for the backward pass only a few numbers per row are kept, not a softmax.
- A row whose upstream gradient is zero (masked, not selected, zero advantage) costs no backward.
- ``-inf`` logits, a common offset, bfloat16: values and gradients stay right (half precision is
  accumulated in float32).

Gradients, with ``p = softmax(x / T)`` and ``s = log p + H``::

    d log p_y / dx_j      = (1[j = y] - p_j) / T
    d H / dx_j            = -p_j s_j / T
    d varentropy / dx_j   = p_j (s_j^2 - varentropy + 2 s_j) / T
    d collision / dx_j    = 2 p_j (p_j - c) / T
    d covariance / dx_j   = p_j (2 p_j s_j - 2 cov + p_j - c - c s_j) / T
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotorch.core import _tiles, _token_ops
from infotorch.core._checks import check_bool_mask, check_choice, check_range, check_tensor
from infotorch.core._token_shards import ShardedHidden, ShardedLogits, VocabShard

EXTRAS = ("varentropy", "collision", "entropy_covariance", "top_p_entropy")
BACKENDS = ("auto", "eager", "triton")


@dataclass(frozen=True)
class TokenStats:
    """Statistics of the next-token distribution at each position, all of the labels' shape, in nats.

    Attributes:
        log_probs: ``log p(label)``; None without labels.
        entropy: Shannon entropy ``H``.
        log_normalizer: ``logsumexp(x / T)``.
        varentropy: ``sum p (log p + H)^2``; None unless asked for, like all below.
        collision: ``sum p^2``.
        entropy_covariance: ``sum p^2 (log p + H)``, the covariance of ``p`` and ``log p``: the part
            of a policy-gradient step's effect on entropy that needs the whole vocabulary.
        top_p_entropy: Entropy of the renormalized nucleus.
    """

    log_probs: Tensor | None
    entropy: Tensor
    log_normalizer: Tensor
    varentropy: Tensor | None = None
    collision: Tensor | None = None
    entropy_covariance: Tensor | None = None
    top_p_entropy: Tensor | None = None


def token_stats(
    logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    extras: Collection[str] = (),
    top_p: float = 0.8,
    include_crossing: bool = True,
    top_k: int | None = None,
    shard: VocabShard | None = None,
    backend: str = "auto",
) -> TokenStats:
    r"""Log-probability and entropy of every token, from logits, in one pass.

    .. math:: \log p_y = x_y / T - \log \sum_v e^{x_v / T}, \qquad H = -\sum_v p_v \log p_v

    Args:
        logits: Shape ``(..., V)``, any floating type. ``-inf`` forbids an entry.
        labels: Token ids, int64, shape ``(...)``; None if only entropies are wanted.
        temperature: Positive; a number, or a tensor of shape ``(...)`` (no gradient flows to it).
        mask: Boolean, shape ``(...)``. Rows outside it give 0, cost nothing and may hold NaN and any label.
        extras: Any of ``"varentropy"``, ``"collision"``, ``"entropy_covariance"``, ``"top_p_entropy"``.
        top_p: Mass of the nucleus for ``top_p_entropy``.
        include_crossing: Whether the nucleus holds the token that crosses ``top_p`` (the usual definition;
            without it the nucleus may be empty and its entropy is 0).
        top_k: Most entries the nucleus may hold; None for no such bound.
        shard: The logits are this process's part of a vocabulary split over a group: partial sums are
            combined over the group, and the gradient is that of the local part.
        backend: ``"auto"`` (Triton on CUDA where installed, else eager), ``"eager"`` or ``"triton"``.

    Returns:
        A :class:`TokenStats` of tensors of shape ``(...)``, float32 (float64 for float64 logits). All of
        them carry gradients; second derivatives are not available.

    Raises:
        TypeError: A mask that is not boolean, labels that are not integers, logits that are not floating.
        ValueError: Shapes that do not fit, a label outside the vocabulary (on CPU; on CUDA its
            log-probability is ``-inf``), a temperature that is not positive, an unknown extra.

    >>> stats = token_stats(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))
    >>> stats.entropy
    tensor([[1.3863, 1.3863]])
    >>> stats.log_probs
    tensor([[-1.3863, -1.3863]])
    """
    check_tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected a floating type, got {logits.dtype}")
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with V > 0, got {tuple(logits.shape)}")
    lead = logits.shape[:-1]
    common = _common(lead, labels, temperature, mask, extras, top_p, include_crossing, top_k, shard, backend, logits)
    if shard is not None:
        values = ShardedLogits.apply(logits, common, shard)
    else:
        values, _ = torch.ops.infotorch.token_stats(logits, *common)
    return _record(values, lead, labels is not None, extras)


def token_stats_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    extras: Collection[str] = (),
    top_p: float = 0.8,
    include_crossing: bool = True,
    top_k: int | None = None,
    shard: VocabShard | None = None,
    backend: str = "auto",
) -> TokenStats:
    r"""Log-probability and entropy of every token, from hidden states and the output weight.

    The same statistics as :func:`token_stats` of ``hidden @ weight.T + bias``, computed tile by tile over
    rows and vocabulary, so that the ``(N, V)`` logits never exist; gradients go to all three.
    The backward pass computes the tiles again, for the rows that have a gradient only.

    Args:
        hidden: Shape ``(..., D)``.
        weight: Output embedding, shape ``(V, D)``.
        labels: Token ids, int64, shape ``(...)``; None if only entropies are wanted.
        bias: Shape ``(V,)``.
        temperature: As in :func:`token_stats`, and so are the remaining arguments.
        mask: Boolean, shape ``(...)``.
        extras: Further statistics.
        top_p: Mass of the nucleus.
        include_crossing: Whether the nucleus holds the crossing token.
        top_k: Most entries the nucleus may hold.
        shard: ``weight`` is this process's part of the vocabulary; the gradient of ``hidden`` is summed
            over the group.
        backend: ``"auto"``, ``"eager"`` or ``"triton"``.

    Returns:
        A :class:`TokenStats` of tensors of shape ``(...)``, float32 (float64 for float64 inputs).

    Raises:
        TypeError: As :func:`token_stats`; ``hidden`` and ``weight`` of different types.
        ValueError: As :func:`token_stats`; a ``weight`` or ``bias`` that does not fit.

    >>> stats = token_stats_from_hidden(torch.ones(3, 2), torch.zeros(5, 2), torch.tensor([0, 1, 4]))
    >>> stats.log_probs
    tensor([-1.6094, -1.6094, -1.6094])
    """
    check_tensor("hidden", hidden)
    check_tensor("weight", weight)
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"hidden, weight: expected shapes (..., D) and (V, D), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise TypeError(f"hidden, weight: expected one floating type, got {hidden.dtype} and {weight.dtype}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    lead = hidden.shape[:-1]
    common = _common(lead, labels, temperature, mask, extras, top_p, include_crossing, top_k, shard, backend, hidden)
    flat = hidden.reshape(-1, hidden.shape[-1])
    if shard is not None:
        values = ShardedHidden.apply(flat, weight, bias, common, shard)
    else:
        values, _ = torch.ops.infotorch.token_stats_from_hidden(flat, weight, bias, *common)
    return _record(values, lead, labels is not None, extras)


def _common(
    lead: torch.Size,
    labels: Tensor | None,
    temperature: float | Tensor,
    mask: Tensor | None,
    extras: Collection[str],
    top_p: float,
    include_crossing: bool,
    top_k: int | None,
    shard: VocabShard | None,
    backend: str,
    like: Tensor,
) -> tuple[Any, ...]:
    """Check what both entries share and return it in the operators' argument order."""
    for extra in extras:
        check_choice("extras", extra, EXTRAS)
    check_choice("backend", backend, BACKENDS)
    if mask is not None:
        mask = check_bool_mask("mask", mask, lead).reshape(-1)
    if labels is not None:
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"labels: expected integer token ids, got {labels.dtype}")
        if labels.shape != lead:
            raise ValueError(f"labels: expected shape {tuple(lead)}, got {tuple(labels.shape)}")
        labels = labels.reshape(-1).long()
    nucleus = "top_p_entropy" in extras
    if nucleus:
        check_range("top_p", top_p, 0.0, 1.0, low_open=True)
        if top_k is not None:
            check_range("top_k", top_k, 1)
        if shard is not None:
            raise ValueError("extras: 'top_p_entropy' needs the whole vocabulary in one process, got a shard")
    dtype = _token_ops.accumulator(like.dtype)
    if isinstance(temperature, Tensor):
        inv_t = (1 / temperature.detach().to(dtype)).expand(lead).reshape(-1)
    else:
        check_range("temperature", temperature, 0.0, float("inf"), low_open=True, high_open=True)
        inv_t = torch.full((lead.numel(),), 1 / temperature, dtype=dtype, device=like.device)
    second = "varentropy" in extras
    # The covariance's and the collision's gradients need each other's value.
    square = "collision" in extras or "entropy_covariance" in extras
    return labels, mask, inv_t, second, square, top_p if nucleus else 0.0, include_crossing, top_k or 0, backend


def _record(values: Tensor, lead: torch.Size, labelled: bool, extras: Collection[str]) -> TokenStats:
    rows = [row.reshape(lead) for row in values.unbind(0)]
    wanted = {name: rows[index] for index, name in enumerate(EXTRAS, start=_tiles.VARENTROPY) if name in extras}
    return TokenStats(
        log_probs=rows[_tiles.LOG_PROB] if labelled else None,
        entropy=rows[_tiles.ENTROPY],
        log_normalizer=rows[_tiles.LOG_NORMALIZER],
        **wanted,
    )


# ---------------------------------------------------------------------------------------------------------
# Operators: what torch.compile sees
# ---------------------------------------------------------------------------------------------------------


def _check_values(labels: Tensor | None, mask: Tensor | None, inv_t: Tensor, vocab: int) -> None:
    """Range checks that look at data; only where looking is free of a device synchronization."""
    if inv_t.device.type != "cpu":
        return
    used = inv_t if mask is None else inv_t[mask]
    if used.numel() and not bool(((used > 0) & used.isfinite()).all()):
        raise ValueError("temperature: expected positive finite numbers at every valid token")
    if labels is not None:
        used = labels if mask is None else labels[mask]
        if used.numel() and (int(used.min()) < 0 or int(used.max()) >= vocab):
            wrong = int(used.max()) if int(used.max()) >= vocab else int(used.min())
            raise ValueError(f"labels: expected token ids in [0, {vocab}), got {wrong} (mask out padding)")


@torch.library.custom_op("infotorch::token_stats", mutates_args=())
def _logits_op(
    logits: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    inv_t: Tensor,
    second: bool,
    square: bool,
    top_p: float,
    include_crossing: bool,
    top_k: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_values(labels, mask, inv_t, logits.shape[-1])
    partials = _token_ops.fold_masked_logits(logits, labels, 0, inv_t, mask, second, square, backend)
    values, saved = _tiles.finalize(partials, inv_t)
    if top_p > 0:
        _token_ops.fold_nucleus_logits(
            logits, inv_t, _token_ops.active_rows(mask), values, saved, top_p, include_crossing, top_k
        )
    return _token_ops.clear_inactive(values, mask), saved


@torch.library.custom_op("infotorch::token_stats_from_hidden", mutates_args=())
def _hidden_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    inv_t: Tensor,
    second: bool,
    square: bool,
    top_p: float,
    include_crossing: bool,
    top_k: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    active = _token_ops.active_rows(mask)
    _check_values(labels, mask, inv_t, weight.shape[0])
    own_labels = labels
    if active is not None:
        hidden, inv_t = hidden[active], inv_t[active]
        own_labels = None if labels is None else labels[active]
    partials = _token_ops.fold_hidden(hidden, weight, bias, own_labels, 0, inv_t, second, square, backend)
    values, saved = _tiles.finalize(partials, inv_t)
    if top_p > 0:
        _token_ops.fold_nucleus_hidden(hidden, weight, bias, inv_t, values, saved, top_p, include_crossing, top_k)
    if active is None or mask is None:
        return values, saved
    full = values.new_zeros(values.shape[0], mask.shape[0]), saved.new_zeros(saved.shape[0], mask.shape[0])
    full[0][:, active], full[1][:, active] = values, saved
    return full


def _outputs(n: int, inv_t: Tensor) -> tuple[Tensor, Tensor]:
    return inv_t.new_empty(_tiles.NUM_VALUES, n), inv_t.new_empty(_tiles.NUM_SAVED, n)


@_logits_op.register_fake
def _(logits, labels, mask, inv_t, *options):  # noqa: ANN001, ANN002, ANN202
    return _outputs(inv_t.shape[0], inv_t)


@_hidden_op.register_fake
def _(hidden, weight, bias, labels, mask, inv_t, *options):  # noqa: ANN001, ANN002, ANN202
    return _outputs(hidden.shape[0], inv_t)


@torch.library.custom_op("infotorch::token_stats_backward", mutates_args=())
def _logits_backward_op(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    inv_t: Tensor,
    values: Tensor,
    saved: Tensor,
    higher: bool,
    nucleus: bool,
    backend: str,
) -> Tensor:
    grad = _token_ops.under_mask(grad, mask)
    return _token_ops.grad_logits(grad, logits, labels, 0, inv_t, values, saved, higher, nucleus, backend)


@_logits_backward_op.register_fake
def _(grad, logits, *rest):  # noqa: ANN001, ANN002, ANN202
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op("infotorch::token_stats_from_hidden_backward", mutates_args=())
def _hidden_backward_op(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    inv_t: Tensor,
    values: Tensor,
    saved: Tensor,
    higher: bool,
    nucleus: bool,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = _token_ops.under_mask(grad, mask)
    needs = (need_hidden, need_weight, need_bias)
    return _token_ops.grad_hidden(
        grad, hidden, weight, bias, labels, 0, inv_t, values, saved, higher, nucleus, needs, backend
    )


@_hidden_backward_op.register_fake
def _(grad, hidden, weight, bias, labels, mask, inv_t, values, saved, higher, nucleus, nh, nw, nb, backend):  # noqa: ANN001, ANN202
    empty = hidden.new_empty(0)
    like = torch.empty_like
    return (
        like(hidden, memory_format=torch.contiguous_format) if nh else empty,
        like(weight, memory_format=torch.contiguous_format) if nw else hidden.new_empty(0),
        like(bias) if nb else hidden.new_empty(0),
    )


def _setup_logits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, mask, inv_t, second, square, top_p, _, _, ctx.backend = inputs
    ctx.higher, ctx.nucleus = second or square, top_p > 0
    ctx.save_for_backward(logits, labels, mask, inv_t, *output)


def _backward_logits(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, mask, inv_t, values, saved = ctx.saved_tensors
    grad_logits = torch.ops.infotorch.token_stats_backward(
        grad.contiguous(), logits, labels, mask, inv_t, values, saved, ctx.higher, ctx.nucleus, ctx.backend
    )
    return grad_logits, *(None,) * 9


def _setup_hidden(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, bias, labels, mask, inv_t, second, square, top_p, _, _, ctx.backend = inputs
    ctx.higher, ctx.nucleus = second or square, top_p > 0
    ctx.save_for_backward(hidden, weight, bias, labels, mask, inv_t, *output)


def _backward_hidden(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, labels, mask, inv_t, values, saved = ctx.saved_tensors
    needs = tuple(ctx.needs_input_grad[:3])
    grads = torch.ops.infotorch.token_stats_from_hidden_backward(
        grad.contiguous(),
        hidden,
        weight,
        bias,
        labels,
        mask,
        inv_t,
        values,
        saved,
        ctx.higher,
        ctx.nucleus,
        *needs,
        ctx.backend,
    )
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 9


_logits_op.register_autograd(_backward_logits, setup_context=_setup_logits)
_hidden_op.register_autograd(_backward_hidden, setup_context=_setup_hidden)
