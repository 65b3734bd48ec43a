r"""Adversarial losses on codes, and the penalty on the discriminator's slope at real data.

Each works on codes ``(n, M)`` or scores ``(n,)``: ``"mean"`` on every entry alike, the others on a code's mean.

References:
    - H. Liu et al., "Manifold-preserved GANs", 2021, arXiv:2109.08955 (``"mean"``).
    - J. H. Lim and J. C. Ye, "Geometric GAN", 2017, arXiv:1705.02894 (``"hinge"``).
    - I. Goodfellow et al., "Generative adversarial networks", 2014, arXiv:1406.2661 (``"non_saturating"``).
    - L. Mescheder, A. Geiger, S. Nowozin, "Which training methods for GANs do actually converge?", 2018,
      arXiv:1801.04406 (R1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from infotorch.core._checks import check_choice, check_tensor

__all__ = ["LOSSES", "discriminator_loss", "generator_loss", "r1_penalty"]

LOSSES = ("mean", "hinge", "non_saturating")


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "mean") -> Tensor:
    r"""What the discriminator minimizes, with scores :math:`s` of real and :math:`r` of generated samples.

    ``"mean"``: :math:`\bar r - \bar s` (its slope must be bounded, by spectral normalization say); ``"hinge"``:
    :math:`\overline{\max(0, 1 - s)} + \overline{\max(0, 1 + r)}`; ``"non_saturating"``:
    :math:`\overline{\log(1 + e^{-s})} + \overline{\log(1 + e^r)}`.

    Args:
        real: ``(n, M)`` or ``(n,)``.
        fake: Likewise; the numbers of samples may differ.
        kind: Which loss.

    Returns:
        0-d.

    Raises:
        TypeError: Not floating tensors.
        ValueError: Empty, unknown ``kind``.

    >>> discriminator_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.0]), "hinge")
    tensor(1.)
    """
    check_choice("kind", kind, LOSSES)
    real, fake = _scores("real", real), _scores("fake", fake)
    if kind == "mean":
        return fake.mean() - real.mean()
    if kind == "hinge":
        return relu(1 - real).mean() + relu(1 + fake).mean()
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor, kind: str = "mean") -> Tensor:
    r"""What the generator minimizes: :math:`-\bar r`, or with ``"non_saturating"`` :math:`\overline{\log(1 + e^{-r})}`.

    Args:
        fake: Codes of generated samples, ``(n, M)`` or ``(n,)``.
        kind: Which loss; see :func:`discriminator_loss`.

    Returns:
        0-d.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: Empty, unknown ``kind``.

    >>> generator_loss(torch.tensor([1.0, 3.0]))
    tensor(-2.)
    """
    check_choice("kind", kind, LOSSES)
    scores = _scores("fake", fake)
    return softplus(-scores).mean() if kind == "non_saturating" else -scores.mean()


def r1_penalty(codes: Tensor, x: Tensor) -> Tensor:
    r"""R1, :math:`\frac1n \sum_i \lVert \nabla_x s(x_i) \rVert^2`, through which gradients flow.

    Args:
        codes: Codes of ``x``, ``(n, M)`` or ``(n,)``, computed with ``x.requires_grad``.
        x: Real samples, ``(n, ...)``.

    Returns:
        0-d.

    Raises:
        TypeError: ``codes`` is not a floating tensor.
        ValueError: ``x`` does not require gradients.

    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> float(r1_penalty(x.square().sum(1), x).detach())  # slope 2 in three directions
    12.0
    """
    if not x.requires_grad:
        raise ValueError("x: expected a tensor that requires gradients, got one that does not")
    (slope,) = torch.autograd.grad(_scores("codes", codes).sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()


def _scores(name: str, codes: Tensor) -> Tensor:
    """One score per sample, in float32 or float64."""
    if not check_tensor(name, codes).is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {codes.dtype}")
    if codes.ndim not in (1, 2) or codes.numel() == 0:
        raise ValueError(f"{name}: expected shape (n, M) or (n,), not empty, got {tuple(codes.shape)}")
    codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
    return codes.mean(1) if codes.ndim == 2 else codes
