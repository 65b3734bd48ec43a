r"""SFDA (AdaMI): adapt a segmentation network to unlabeled images of another appearance, without its training images.

When a network trained on one scanner, site or season is to work on another, with no source image and no target mask at
hand, but a rough idea of how large every class is. One network, one stage, no discriminator: certain pixels, in
proportions that anatomy allows.

.. math::
    L = \lambda_H \frac{1}{BN} \sum_{bi} \sum_k -\nu_k \, p_{bki} \log p_{bki}
        + \lambda_\pi \frac1B \sum_b \mathrm{KL}(\tau_b \,\|\, \pi_b), \qquad \tau_{bk} = \frac1N \sum_i p_{bki}

With equal weights and a uniform prior this is :math:`\log K` minus the mutual information between a pixel's index and
its class; a prior from anatomy takes the place of the uniform marginal.

Deviations from the released code: logarithms come from one log-softmax (theirs adds 1e-10 to probabilities); ratios
are means of probabilities as in the text (theirs: ``ratio="normmax"``); priors are checked and normalized (theirs sum
to 1.005 for the prostate); there are a mask of valid pixels, sigmoids, and counts over all ranks.

Reference: M. Bateson, H. Kervadec, J. Dolz, H. Lombaert, I. Ben Ayed, "Source-free domain adaptation for image
segmentation", Medical Image Analysis 2022, arXiv:2108.03152.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotorch.adaptation.priors import as_class_ratios
from infotorch.adaptation.ratios import (
    RATIOS,
    check_logits,
    check_valid,
    class_ratio_kl,
    class_ratios,
    class_size_penalty,
    information_of,
    pixel_counts,
    pixel_sums,
)
from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core.reduce import zero_outside

ACTIVATIONS = ("softmax", "sigmoid")
DIVERGENCES = ("reverse", "forward", "size")
SCOPES = ("local", "global")


@dataclass(frozen=True)
class SFDAOutput:
    """The adaptation loss and what it is made of.

    Attributes:
        loss: 0-d, the weighted sum.
        entropy: 0-d, weighted pixel entropy in nats.
        divergence: 0-d, mean divergence from the prior; 0 without one.
        ratios: Predicted class ratios, ``(B, K)``; with sigmoids ``(B, C)``, the foreground's.
        mutual_information: 0-d, mean over images of that between pixel index and class; without gradient.
    """

    loss: Tensor
    entropy: Tensor
    divergence: Tensor
    ratios: Tensor
    mutual_information: Tensor


def weighted_entropy(
    logits: Tensor,
    class_weights: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    activation: str = "softmax",
    scope: str = "local",
) -> Tensor:
    r"""Mean pixel entropy whose terms are weighted by class, :math:`-\frac{1}{n} \sum_i \sum_k \nu_k p_k \log p_k`.

    Alone it collapses onto the largest class. Arguments, result and errors are those of :func:`sfda_loss`.

    Returns:
        0-d, in nats.

    >>> weighted_entropy(torch.zeros(1, 2, 3), torch.tensor([0.5, 1.5]))  # log 2: the weights' mean is one
    tensor(0.6931)
    """
    options = {"valid": valid, "activation": activation, "scope": scope}
    return sfda_loss(logits, class_weights=class_weights, prior_weight=0.0, **options).entropy


def sfda_loss(
    logits: Tensor,
    prior: Tensor | None = None,
    *,
    class_weights: Tensor | None = None,
    valid: Tensor | None = None,
    entropy_weight: float = 1.0,
    prior_weight: float = 1.0,
    divergence: str = "reverse",
    margin: float = 0.1,
    ratio: str = "mean",
    power: float = 1.0,
    activation: str = "softmax",
    scope: str = "local",
    eps: float = 1e-10,
) -> SFDAOutput:
    r"""Weighted entropy of the pixels plus divergence of each image's class ratios from their prior.

    :math:`\lambda_H \frac1n \sum_i \sum_k -\nu_k p_k \log p_k + \lambda_\pi \frac1B \sum_b D(\tau_b, \pi_b)`.

    Args:
        logits: Shape ``(B, K, *S)``, images or volumes; with ``activation="sigmoid"`` ``(B, C, *S)``, every channel a
            foreground of its own.
        prior: Class ratios, shape ``(K,)`` or ``(B, K)``; of the foregrounds, ``(C,)`` or ``(B, C)``, for sigmoids.
            Rows that do not sum to one are normalized with a warning. It may be missing if ``prior_weight`` is 0.
        class_weights: :math:`\nu`, non-negative, shape ``(K,)``; ``(2,)``, background and foreground, for sigmoids.
            Default: ones. They weigh each class's term, probabilities stay as they are.
        valid: Boolean, shape ``(B, *S)``: pixels that count. Others may hold anything.
        entropy_weight: :math:`\lambda_H`.
        prior_weight: :math:`\lambda_\pi`.
        divergence: ``"reverse"`` KL of predicted from prior ratios, ``"forward"`` KL, or ``"size"``: squared distance
            from the interval of ``margin`` around the prior.
        margin: Relative, for ``"size"``.
        ratio: ``"mean"`` or ``"normmax"``, see :func:`class_ratios`.
        power: Exponent of ``"normmax"``.
        activation: ``"softmax"`` or ``"sigmoid"``.
        scope: The entropy is a mean over valid pixels and the divergence one over images that have any; ``"local"``
            takes them over this batch, and data parallelism averages ranks, which is exact for equal shares.
            ``"global"`` counts pixels and images of all ranks, and multiplies by their number, so that the average
            of gradients equals one process on all images.
        eps: In the logarithms of the ratios.

    Returns:
        :class:`SFDAOutput`. Without a valid pixel all is 0, with gradient 0.

    Raises:
        TypeError: ``logits`` is not a floating tensor, ``valid`` not a boolean one.
        ValueError: Shapes that do not fit, negative weights or ratios, an unknown or missing option.

    Reference: M. Bateson et al., 2022, arXiv:2108.03152.

    >>> logits = torch.tensor([[[3.0, 3.0, -3.0, 3.0], [-3.0, -3.0, 3.0, -3.0]]])
    >>> out = sfda_loss(logits, torch.tensor([0.75, 0.25]))
    >>> out.ratios, out.loss
    (tensor([[0.7488, 0.2512]]), tensor(0.0173))
    """
    check_choice("divergence", divergence, DIVERGENCES)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("scope", scope, SCOPES)
    check_choice("ratio", ratio, RATIOS)
    channels = 0
    if activation == "sigmoid":
        channels = check_tensor("logits", logits).shape[1] if logits.ndim > 2 else 0
        logits, prior, valid = _as_pairs(logits, prior, valid)
    logits, valid = check_logits(logits), check_valid(valid, logits)
    nu = _weights(class_weights, logits)
    counts = pixel_counts(logits, valid)
    mass, entropies = pixel_sums(logits, valid)
    ratios = mass / counts.clamp(min=1).unsqueeze(1)
    information = information_of(ratios.detach(), entropies.detach().sum(1) / counts.clamp(min=1)).sum()
    if ratio == "normmax":
        ratios = class_ratios(logits, ratio=ratio, power=power, valid=valid, eps=eps)
    per_image = _divergences(ratios, prior, prior_weight, divergence, margin, eps)
    sums = torch.stack(
        [(entropies if nu is None else entropies * nu).sum(), zero_outside(per_image, counts > 0).sum(), information]
    )
    images = (counts > 0).sum()
    totals = torch.stack([counts.sum(), images, images])
    if scope == "global":
        totals, sums = distributed.all_reduce_sum(totals), sums * distributed.world_size()
    entropy, away, information = (sums / totals.clamp(min=1)).unbind()
    loss = entropy_weight * entropy + prior_weight * away
    if channels:
        ratios = ratios[:, 1].unflatten(0, (-1, channels))
    return SFDAOutput(loss, entropy, away, ratios, information.detach())


def _divergences(
    ratios: Tensor, prior: Tensor | None, weight: float, divergence: str, margin: float, eps: float
) -> Tensor:
    """Of every image."""
    if prior is None:
        if weight != 0:
            raise ValueError("prior: expected class ratios of shape (K,) or (B, K) unless prior_weight is 0, got None")
        return torch.zeros_like(ratios[:, 0])
    prior = as_class_ratios(prior, ratios.shape[1])
    if divergence == "size":
        check_range("margin", margin, 0.0, math.inf, high_open=True)
        return class_size_penalty(ratios, prior * (1 - margin), prior * (1 + margin))
    return class_ratio_kl(ratios, prior, direction=divergence, eps=eps)


def _weights(weights: Tensor | None, logits: Tensor) -> Tensor | None:
    if weights is None:
        return None
    weights = check_tensor("class_weights", weights)
    if tuple(weights.shape) != (logits.shape[1],):
        raise ValueError(f"class_weights: expected shape ({logits.shape[1]},), got {tuple(weights.shape)}")
    if not torch.compiler.is_compiling() and not bool((weights >= 0).all() & weights.isfinite().all()):
        raise ValueError(f"class_weights: expected finite numbers of at least 0, got {weights.tolist()}")
    return weights.detach().to(logits.device, torch.promote_types(logits.dtype, torch.float32))


def _as_pairs(
    logits: Tensor, prior: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Every sigmoid channel as an image of two classes."""
    if logits.ndim < 3:
        raise ValueError(f"logits: expected shape (B, C, *pixels), got {tuple(logits.shape)}")
    b, c = logits.shape[:2]
    if valid is not None:
        check_valid(valid, logits)
        valid = valid.repeat_interleave(c, 0)
    if prior is not None:
        prior = check_tensor("prior", prior)
        if tuple(prior.shape) not in ((c,), (b, c)):
            raise ValueError(
                f"prior: expected foreground ratios of shape ({c},) or ({b}, {c}), got {tuple(prior.shape)}"
            )
        if not torch.compiler.is_compiling() and not bool(((prior >= 0) & (prior <= 1)).all()):
            raise ValueError(f"prior: expected foreground ratios in [0, 1], got {prior.min()} to {prior.max()}")
        prior = prior.expand(b, c).reshape(-1)
        prior = torch.stack([1 - prior, prior], 1)
    return torch.stack([torch.zeros_like(logits), logits], 2).flatten(0, 1), prior, valid


class SFDALoss(nn.Module):
    """Module of :func:`sfda_loss`; keeps the prior and the class weights on the network's device.

    Args:
        prior: Class ratios of every image, shape ``(K,)``, unless each call brings its own.
        class_weights: Shape ``(K,)``.
        entropy_weight, prior_weight, divergence, margin, ratio, power, activation, scope, eps: See :func:`sfda_loss`.

    Raises:
        ValueError: As :func:`sfda_loss`, at the first call where shapes are concerned.

    Warns:
        UserWarning: ``prior_weight`` is 0: the entropy alone collapses.

    >>> loss = SFDALoss(torch.tensor([0.75, 0.25]))
    >>> loss(torch.tensor([[[3.0, 3.0, -3.0, 3.0], [-3.0, -3.0, 3.0, -3.0]]])).divergence
    tensor(4.1374e-06)
    """

    prior: Tensor | None
    class_weights: Tensor | None

    def __init__(
        self,
        prior: Tensor | None = None,
        class_weights: Tensor | None = None,
        *,
        entropy_weight: float = 1.0,
        prior_weight: float = 1.0,
        divergence: str = "reverse",
        margin: float = 0.1,
        ratio: str = "mean",
        power: float = 1.0,
        activation: str = "softmax",
        scope: str = "local",
        eps: float = 1e-10,
    ) -> None:
        super().__init__()
        check_range("entropy_weight", entropy_weight, 0.0, math.inf, high_open=True)
        check_range("prior_weight", prior_weight, 0.0, math.inf, high_open=True)
        check_range("margin", margin, 0.0, math.inf, high_open=True)
        check_range("power", power, 0.0, math.inf, low_open=True, high_open=True)
        check_range("eps", eps, 0.0, low_open=True)
        self.divergence = check_choice("divergence", divergence, DIVERGENCES)
        self.ratio = check_choice("ratio", ratio, RATIOS)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.scope = check_choice("scope", scope, SCOPES)
        if prior_weight == 0:
            warnings.warn("prior_weight: at 0 nothing keeps the entropy from collapsing onto one class", stacklevel=2)
        if prior is not None:
            if check_tensor("prior", prior).ndim != 1:
                raise ValueError(f"prior: expected shape (K,), one for all images, got {tuple(prior.shape)}")
            prior = as_class_ratios(prior) if activation == "softmax" else prior
        if class_weights is not None:
            check_tensor("class_weights", class_weights)
        self.register_buffer("prior", prior)
        self.register_buffer("class_weights", class_weights)
        self.entropy_weight, self.prior_weight, self.margin = entropy_weight, prior_weight, margin
        self.power, self.eps = power, eps

    def forward(self, logits: Tensor, prior: Tensor | None = None, *, valid: Tensor | None = None) -> SFDAOutput:
        """Of the logits; ``prior`` of these images takes the place of the one kept."""
        return sfda_loss(
            logits,
            self.prior if prior is None else prior,
            class_weights=self.class_weights,
            valid=valid,
            entropy_weight=self.entropy_weight,
            prior_weight=self.prior_weight,
            divergence=self.divergence,
            margin=self.margin,
            ratio=self.ratio,
            power=self.power,
            activation=self.activation,
            scope=self.scope,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Options that tell one loss from another."""
        return f"{self.divergence}, ratio={self.ratio!r}, weights={self.entropy_weight:g}, {self.prior_weight:g}"
