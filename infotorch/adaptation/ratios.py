r"""Class ratios of segmentation maps: what share of an image each class is predicted to cover, and how far from known.

Everything is built from two sums per image and class, :math:`\sum_i p_{ki}` and :math:`-\sum_i p_{ki} \log p_{ki}`
over the pixels i, which come from one softmax with its gradient in closed form.

References:
    - M. Bateson et al., "Source-free domain adaptation for image segmentation", 2022, arXiv:2108.03152.
    - H. Kervadec et al., "Constrained-CNN losses for weakly supervised segmentation", 2019, arXiv:1805.04628.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from infotorch.core import categorical
from infotorch.core._autograd import first_order
from infotorch.core._checks import check_bool_mask, check_choice, check_range, check_tensor
from infotorch.core.reduce import zero_outside

RATIOS = ("mean", "normmax")
DIRECTIONS = ("reverse", "forward")
_FLOOR = -1e4  # exp of it is 0 in every precision: stands for -inf where a product with 0 is taken


def entropy_map(logits: Tensor) -> Tensor:
    r"""Entropy of every pixel, :math:`-\sum_k p_k \log p_k` in nats.

    Args:
        logits: Shape ``(B, K, *S)``.

    Returns:
        Shape ``(B, *S)``.

    Raises:
        TypeError: ``logits`` is not a floating tensor.
        ValueError: Fewer than two classes, or no pixel dimension.

    >>> entropy_map(torch.zeros(1, 4, 1, 2))  # log 4
    tensor([[[1.3863, 1.3863]]])
    """
    return categorical.entropy(check_logits(logits).movedim(1, -1))


def class_ratios(
    logits: Tensor, *, ratio: str = "mean", power: float = 1.0, valid: Tensor | None = None, eps: float = 1e-10
) -> Tensor:
    r"""Share of every image that each class is predicted to cover, with gradient.

    ``"mean"`` averages probabilities, :math:`\tau_k = \frac1N \sum_i p_{ki}`. ``"normmax"`` is a soft count of the
    arg max: :math:`r_{ki} = (p_{ki} / \max_j p_{ji})^\mathrm{power}` and
    :math:`\tau_k = \sum_i r_{ki} / (\sum_{ki} r_{ki} + \epsilon)`; the gradient flows through the maximum too.

    Args:
        logits: Shape ``(B, K, *S)``; any number of pixel dimensions.
        ratio: ``"mean"`` or ``"normmax"``.
        power: Positive exponent of ``"normmax"``; the larger, the nearer to counting the arg max.
        valid: Boolean, shape ``(B, *S)``: pixels that count. An image without any has ratios of 0.
        eps: In the denominator of ``"normmax"``.

    Returns:
        Shape ``(B, K)``, at least float32.

    Raises:
        TypeError: ``logits`` is not a floating tensor, ``valid`` not a boolean one.
        ValueError: Shapes that do not fit, unknown ``ratio``, ``power`` or ``eps`` out of range.

    Reference: M. Bateson et al., 2022, arXiv:2108.03152. The text has the mean, the released code ``"normmax"``.

    >>> class_ratios(torch.tensor([[[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]]))
    tensor([[0.8808, 0.1192]])
    """
    logits, valid = check_logits(logits), check_valid(valid, logits)
    check_choice("ratio", ratio, RATIOS)
    if ratio == "normmax":
        return _normmax(logits, power, valid, eps)
    return pixel_sums(logits, valid)[0] / pixel_counts(logits, valid).clamp(min=1).unsqueeze(1)


def class_ratio_kl(ratios: Tensor, prior: Tensor, *, direction: str = "reverse", eps: float = 1e-10) -> Tensor:
    r"""Divergence of predicted class ratios from known ones, in nats per image.

    ``"reverse"``: :math:`\sum_k \tau_k (\log(\tau_k + \epsilon) - \log(\pi_k + \epsilon))`, of the method;
    ``"forward"``: the same with :math:`\tau` and the prior :math:`\pi` exchanged, of its predecessor. The ``eps`` caps
    the price of a class that the prior says is absent, at 23 nats per unit of predicted mass.

    Args:
        ratios: Predicted, shape ``(B, K)``.
        prior: Known, shape ``(K,)`` or ``(B, K)``; a constant, whose gradient is not taken.
        direction: ``"reverse"`` or ``"forward"``.
        eps: In the logarithms.

    Returns:
        Shape ``(B,)``.

    Raises:
        ValueError: Shapes that do not fit, unknown ``direction``, ``eps`` not positive.

    Reference: M. Bateson et al., 2022, arXiv:2108.03152; M. Bateson et al., 2020, arXiv:2005.03697 (forward).

    >>> class_ratio_kl(torch.tensor([[0.5, 0.5]]), torch.tensor([0.9, 0.1]))
    tensor([0.5108])
    """
    check_choice("direction", direction, DIRECTIONS)
    check_range("eps", eps, 0.0, low_open=True)
    first, second = ratios, check_prior(prior, ratios)
    if direction == "forward":
        first, second = second, first
    return (first * ((first + eps).log() - (second + eps).log())).sum(1)


def class_size_penalty(ratios: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""Squared distance of predicted class ratios from an interval, 0 inside it.

    :math:`\sum_k \max(a_k - \tau_k, 0)^2 + \max(\tau_k - b_k, 0)^2`: for sizes that are known within bounds.

    Args:
        ratios: Predicted, shape ``(B, K)``.
        low: Lower bounds :math:`a`, shape ``(K,)`` or ``(B, K)``.
        high: Upper bounds :math:`b`, likewise.

    Returns:
        Shape ``(B,)``.

    Raises:
        ValueError: Shapes that do not fit.

    Reference: H. Kervadec et al., 2019, arXiv:1805.04628. Theirs counts pixels, this one shares of the image, so that
    its size does not depend on the resolution.

    >>> class_size_penalty(torch.tensor([[0.5, 0.5]]), torch.tensor([0.8, 0.0]), torch.tensor([1.0, 0.5]))
    tensor([0.0900])
    """
    low, high = check_prior(low, ratios, "low"), check_prior(high, ratios, "high")
    return ((low - ratios).relu().square() + (ratios - high).relu().square()).sum(1)


def mutual_information(logits: Tensor, *, valid: Tensor | None = None) -> Tensor:
    r"""Mutual information of pixel index and predicted class, :math:`H(\tau) - \frac1N \sum_i H(p_i)`, per image.

    With a uniform prior and no class weights the adaptation loss is :math:`\log K` minus its mean over images.

    Args:
        logits: Shape ``(B, K, *S)``.
        valid: Boolean, shape ``(B, *S)``: pixels that count.

    Returns:
        Shape ``(B,)``, in nats, between 0 and ``log K``; 0 for an image without a valid pixel.

    Raises:
        TypeError: ``logits`` is not a floating tensor, ``valid`` not a boolean one.
        ValueError: Shapes that do not fit.

    >>> mutual_information(torch.tensor([[[99.0, 0.0], [0.0, 99.0]]]))  # log 2: both classes, each certain
    tensor([0.6931])
    """
    logits, valid = check_logits(logits), check_valid(valid, logits)
    counts = pixel_counts(logits, valid).clamp(min=1)
    mass, entropies = pixel_sums(logits, valid)
    return information_of(mass / counts.unsqueeze(1), entropies.sum(1) / counts)


def information_of(ratios: Tensor, entropy: Tensor) -> Tensor:
    """Entropy of the ratios minus the mean pixel entropy, neither below 0 by rounding."""
    return (categorical.entropy(probs=ratios) - entropy).clamp(min=0)


class _PixelSums(torch.autograd.Function):
    """Sums of p and of -p log p over pixels; only the log-probabilities are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        if valid is not None:
            wide = zero_outside(wide, valid.unsqueeze(1))
        log_p = torch.log_softmax(wide, 1).clamp_(min=_FLOOR)
        p = log_p.exp()
        if valid is not None:
            p = zero_outside(p, valid.unsqueeze(1))
        ctx.save_for_backward(log_p, valid)
        ctx.dtype = logits.dtype
        pixels = tuple(range(2, logits.ndim))
        mass = p.sum(pixels)
        return mass, -p.mul_(log_p).sum(pixels)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        log_p, valid = ctx.saved_tensors
        of_mass, of_entropy = (g.reshape(*g.shape, *[1] * (log_p.ndim - 2)) for g in grads)
        p = log_p.exp()
        # In the log-probabilities: p (g_mass - g_entropy (log p + 1)); then through the log-softmax.
        grad = (of_mass - of_entropy).addcmul(of_entropy, log_p, value=-1).mul_(p)
        grad = grad.addcmul_(p, grad.sum(1, keepdim=True), value=-1)
        if valid is not None:
            grad = zero_outside(grad, valid.unsqueeze(1))
        return grad.to(ctx.dtype), None


def pixel_sums(logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums over the valid pixels of ``p`` and of ``-p log p``, each ``(B, K)``."""
    mass, entropies = _PixelSums.apply(logits, valid)  # pyright: ignore[reportGeneralTypeIssues]
    return mass, entropies


def pixel_counts(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Number of valid pixels of every image, int64 ``(B,)``."""
    if valid is None:
        return torch.full((len(logits),), math.prod(logits.shape[2:]), device=logits.device)
    return valid.flatten(1).sum(1)


def _normmax(logits: Tensor, power: float, valid: Tensor | None, eps: float) -> Tensor:
    check_range("power", power, 0.0, math.inf, low_open=True, high_open=True)
    check_range("eps", eps, 0.0, low_open=True)
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    if valid is not None:
        wide = zero_outside(wide, valid.unsqueeze(1))
    # The softmax's denominator cancels. `max`, not `amax`: a tie sends its gradient to one class, as in the release.
    share = ((wide - wide.max(1, keepdim=True).values) * power).exp()
    if valid is not None:
        share = zero_outside(share, valid.unsqueeze(1))
    size = share.flatten(2).sum(2)
    return size / (size.sum(1, keepdim=True) + eps)


def check_logits(logits: object) -> Tensor:
    """``logits`` if they are those of a segmentation by softmax."""
    logits = check_tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected a floating-point tensor, got {logits.dtype}")
    if logits.ndim < 3 or logits.shape[1] < 2:
        hint = " (one channel is a sigmoid's: activation='sigmoid')" if logits.ndim > 2 else ""
        raise ValueError(f"logits: expected shape (B, K, *pixels) with K >= 2 classes, got {tuple(logits.shape)}{hint}")
    return logits


def check_valid(valid: Tensor | None, logits: Tensor) -> Tensor | None:
    """``valid`` if it is a mask of the pixels of ``logits``."""
    shape = (logits.shape[0], *logits.shape[2:])
    return None if valid is None else check_bool_mask("valid", valid, shape)


def check_prior(prior: object, ratios: Tensor, name: str = "prior") -> Tensor:
    """``prior`` as a constant that broadcasts to the ratios; only its shape is checked."""
    prior = check_tensor(name, prior)
    if tuple(prior.shape) not in (tuple(ratios.shape), tuple(ratios.shape[1:])):
        b, k = ratios.shape
        raise ValueError(f"{name}: expected shape ({k},) or ({b}, {k}), got {tuple(prior.shape)}")
    return prior.detach().to(ratios)
