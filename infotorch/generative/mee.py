r"""Manifold entropy for adversarial networks: three terms on the codes of a discriminator, against lost modes.

The discriminator gives a code of M entries instead of one score. Two regularizers shape the space of codes: DLLE keeps
the codes of an image and of its slightly changed copy together, DIsoMap lets the code of a mixture of images be the
mixture of their codes. In that space the distance to the nearest earlier code estimates entropy, and both networks are
paid for it: codes that crowd together, as those of a generator that lost modes do, are pushed apart. The terms need
nothing but codes, so they go with any generator, discriminator and adversarial loss.

With codes :math:`t` of real and :math:`g` of generated batches, :math:`\mathrm{sg}` for stopped gradients and MSE a
mean over the batch and the entries,

.. math::
    L_\mathrm{DLLE} &= \mathrm{MSE}(D(x), \mathrm{sg}\, D(\mathrm{aug}\,x)), \qquad
    L_\mathrm{DIsoMap} = \mathrm{MSE}\bigl(D(a x + (1 - a) G(z)),\ \mathrm{sg}[a t + (1 - a) g + \xi]\bigr) \\
    H(t) &= \log \frac1n \sum_i \min_j \frac1M \lVert t_i - b_j \rVert^2, \qquad b_j \text{ the last codes seen}

Reference: H. Liu et al., "Combating Mode Collapse in GANs via Manifold Entropy Estimation", 2022, arXiv:2208.12055.

Where this deviates from the authors' code: its bank of codes loses a batch and gains one row at every step, so after a
few steps a code is compared with nothing but the previous code of the same place in the batch. Here the bank holds the
last codes, and ``bank="official"`` reproduces theirs. A logarithm of zero, infinite there, is floored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core._samples import check_neighbors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "DLLE",
    "DIsoMap",
    "ManifoldEntropy",
    "StochasticCode",
    "disomap_loss",
    "dlle_loss",
    "draw_alpha",
    "flip_and_noise",
    "interpolate",
    "manifold_entropy",
    "push_codes",
]

REDUCTIONS = ("log_mean", "mean_log")
METRICS = ("euclidean", "cosine")
BANKS = ("fifo", "official")
ALPHAS = ("normal", "uniform")

Embedding = Callable[[Tensor], Tensor]


def manifold_entropy(
    codes: Tensor,
    bank: Tensor | None = None,
    *,
    k: int = 1,
    reduction: str = "log_mean",
    metric: str = "euclidean",
    with_batch: bool = False,
    floor: float = 1e-8,
    group: ProcessGroup | None = None,
) -> Tensor:
    r"""Entropy of codes up to constants, by the distance to the nearest others: :math:`\log \overline{d_i}`.

    :math:`d_i` is the squared difference from the k-th nearest code, averaged over the M entries. Up to constants,
    ``reduction="mean_log"``, :math:`\overline{\log d_i}`, is the Kozachenko-Leonenko entropy times 2 / M
    (:func:`~infotorch.core.differential.kl_entropy`); the paper's code takes the logarithm of the mean, which bounds it
    from above and looks at far codes most. Maximize it; it has no upper bound, so the codes must be bounded by
    spectral normalization, or by ``metric="cosine"``.

    Args:
        codes: Shape ``(n, M)``.
        bank: Codes to compare with, ``(S, M)``, without gradient; or ``(S, n, M)``, where each code is compared with
            those at its own place in the batch (the authors' layout). None: the other codes of the batch.
        k: Which neighbor.
        reduction: ``"log_mean"`` or ``"mean_log"``.
        metric: ``"euclidean"``, or ``"cosine"``: one minus the cosine in place of the squared difference.
        with_batch: Look among the other codes of the batch besides the bank. Gradients reach both codes of a pair.
        floor: Distances (of ``"log_mean"``: their mean) below it count as this much and get no gradient.
        group: Process group. The mean is taken over all processes, and so is the batch.

    Returns:
        0-d, in nats; float64 if ``codes`` is, else float32. With several processes it is the same on all of them, and
        data parallelism, which averages gradients, yields the gradient of one process on the whole batch.

    Raises:
        TypeError: ``codes`` is not a floating tensor.
        ValueError: Shapes that do not fit, fewer than ``k`` codes to compare with (a batch of one without a bank, say),
            values that are not finite, unknown options.

    Reference: H. Liu et al., 2022, arXiv:2208.12055.

    >>> manifold_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0], [3.0, 0.0]]))  # log 1
    tensor(0.)
    >>> manifold_entropy(torch.tensor([[0.0], [1.0], [3.0]]))  # log of the mean of 1, 1 and 4
    tensor(0.6931)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("metric", metric, METRICS)
    check_range("floor", floor, 0.0, math.inf, low_open=True, high_open=True)
    codes = _codes("codes", codes)
    if bank is not None:
        bank = _bank(bank, codes)
    own_place = bank is not None and bank.ndim == 3
    if own_place and with_batch:
        raise ValueError("with_batch: expected False with a bank of shape (S, n, M), got True")
    if metric == "cosine":
        codes = _on_sphere(codes)
        bank = None if bank is None else _on_sphere(bank)
    if bank is not None and own_place:
        check_neighbors(k, len(bank), inclusive=True)
        squares = (codes - bank).square().mean(-1).topk(k, dim=0, largest=False).values[-1]
    else:
        squares = _neighbor_squares(codes, bank, k, with_batch or bank is None, group)
    values = squares.clamp(min=floor).log() if reduction == "mean_log" else squares
    count = distributed.all_reduce_sum(values.new_tensor(len(values)), group)
    mean = distributed.all_reduce_sum_with_grad(values.sum(), group) / count
    return mean if reduction == "mean_log" else mean.clamp(min=floor).log()


def _neighbor_squares(
    codes: Tensor, bank: Tensor | None, k: int, with_batch: bool, group: ProcessGroup | None
) -> Tensor:
    """Mean squared difference from the k-th nearest candidate; who that is is held fixed.

    By plain differences of all pairs, which compiles: batch and bank are small. The search of `core.neighbors` is for
    samples of thousands.
    """
    parts = [] if bank is None else [bank]
    if with_batch:
        parts.append(distributed.gather_cat_with_grad(codes, group))
    candidates = torch.cat(parts)
    if with_batch and len(candidates) < 2:
        raise ValueError("codes: expected at least 2 codes to compare with each other, or a bank, got 1")
    check_neighbors(k, len(candidates), inclusive=not with_batch)
    pairs = torch.cdist(codes.detach(), candidates.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    if with_batch:
        first = len(candidates) - len(parts[-1]) + distributed.rows_before(len(codes), codes.device, group)
        rows = torch.arange(len(codes), device=codes.device).unsqueeze(1)
        pairs = pairs.scatter(1, rows + first, torch.inf)  # a code is not its own neighbor
    nearest = candidates[pairs.topk(k, largest=False).indices[:, -1]]
    return (codes - nearest).square().mean(-1)


def push_codes(bank: Tensor, codes: Tensor) -> Tensor:
    """The bank after a batch: the newest codes enter, the oldest leave.

    Args:
        bank: ``(S, M)``; or ``(L, n, M)``, the authors' layout, which loses n rows and gains one until one is left.
        codes: ``(n, M)``.

    Returns:
        ``(S, M)``, or ``(max(L - n, 0) + 1, n, M)``; without gradient, in the type of the bank.

    Raises:
        ValueError: Shapes that do not fit, codes that are not finite.

    >>> push_codes(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[3.0]])).squeeze(1)
    tensor([1., 2., 3.])
    """
    codes = _codes("codes", codes).detach()
    _bank(bank, codes)
    if bank.ndim == 3:
        return torch.cat((bank[len(codes) :], codes.to(bank).unsqueeze(0)))
    return torch.cat((bank, codes.to(bank)))[-len(bank) :]


def dlle_loss(codes: Tensor, augmented: Tensor) -> Tensor:
    r"""DLLE, :math:`\mathrm{MSE}(D(x), \mathrm{sg}\, D(\mathrm{aug}\,x))`: neighbors in data are neighbors in code.

    Args:
        codes: ``(n, M)``.
        augmented: Codes of the changed copies, ``(n, M)``; no gradient flows to them.

    Returns:
        0-d.

    Raises:
        TypeError: Not floating tensors.
        ValueError: Shapes that differ.

    Reference: H. Liu et al., 2022, arXiv:2208.12055.

    >>> dlle_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor(2.)
    """
    codes, augmented = _codes("codes", codes), _like("augmented", augmented, codes)
    return (codes - augmented.detach()).square().mean()


def disomap_loss(mixed: Tensor, real: Tensor, fake: Tensor, alpha: Tensor, *, noise: Tensor | float = 0.0) -> Tensor:
    r"""DIsoMap, :math:`\mathrm{MSE}(D(a x + (1 - a) f), \mathrm{sg}[a t + (1 - a) g + \xi])`.

    Args:
        mixed: Codes of :func:`interpolate`'s inputs, ``(n, M)``; all of the gradient flows here.
        real: Codes of the real batch, ``(n, M)``.
        fake: Codes of the generated batch, ``(n, M)``.
        alpha: Share of the real input, ``(n,)`` or ``(n, 1)``; it may lie outside [0, 1].
        noise: Added to the target.

    Returns:
        0-d.

    Raises:
        TypeError: Not floating tensors.
        ValueError: Shapes that differ.

    Reference: H. Liu et al., 2022, arXiv:2208.12055.

    >>> one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    >>> disomap_loss(one, one, zero, torch.tensor([0.5]))
    tensor(0.2500)
    """
    mixed = _codes("mixed", mixed)
    target = interpolate(_like("real", real, mixed), _like("fake", fake, mixed), alpha) + noise
    return (mixed - target.detach()).square().mean()


def interpolate(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """``alpha * real + (1 - alpha) * fake``, one share per sample.

    Args:
        real: ``(n, ...)``.
        fake: Likewise.
        alpha: ``(n,)`` or ``(n, 1)``.

    Raises:
        ValueError: Shapes that differ.

    >>> interpolate(torch.ones(2, 1, 1), torch.zeros(2, 1, 1), torch.tensor([0.25, 2.0])).flatten()
    tensor([0.2500, 2.0000])
    """
    if real.shape != fake.shape:
        raise ValueError(f"fake: expected shape {tuple(real.shape)}, got {tuple(fake.shape)}")
    if alpha.shape not in ((len(real),), (len(real), 1)):
        raise ValueError(f"alpha: expected shape ({len(real)},) or ({len(real)}, 1), got {tuple(alpha.shape)}")
    share = alpha.to(real).reshape(-1, *[1] * (real.ndim - 1))
    return share * real + (1 - share) * fake


def draw_alpha(like: Tensor, kind: str = "normal", *, generator: torch.Generator | None = None) -> Tensor:
    """Shares for :func:`interpolate`, one per sample: standard normal as the authors have it, or uniform in [0, 1].

    >>> draw_alpha(torch.zeros(3, 1, 4, 4), "uniform").shape
    torch.Size([3])
    """
    draw = torch.randn if check_choice("kind", kind, ALPHAS) == "normal" else torch.rand
    return draw(len(like), dtype=like.dtype, device=like.device, generator=generator)


def flip_and_noise(x: Tensor, *, scale: float = 1e-3, generator: torch.Generator | None = None) -> Tensor:
    """The authors' small change: the batch flipped along its height or width, and normal noise.

    Args:
        x: ``(n, channels, height, width)``; anything that is no image gets the noise alone.
        scale: Standard deviation of the noise.
        generator: Source of randomness, on the device of ``x``.

    >>> flip_and_noise(torch.zeros(2, 3), scale=0.0)
    tensor([[0., 0., 0.],
            [0., 0., 0.]])
    """
    if x.ndim == 4:
        upside_down = torch.rand((), device=x.device, generator=generator) < 0.5
        x = torch.where(upside_down, x.flip(2), x.flip(3))
    return x + scale * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


class DLLE(nn.Module):
    """Module of :func:`dlle_loss`: changes the inputs, embeds them, compares.

    Args:
        augment: The small change; by default :func:`flip_and_noise`.

    >>> DLLE(lambda x: x)(nn.Identity(), torch.ones(2, 3))
    tensor(0.)
    """

    def __init__(self, augment: Embedding = flip_and_noise) -> None:
        super().__init__()
        self.augment = augment

    def forward(self, embed: Embedding, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """The loss of inputs ``x`` under ``embed``; pass their codes if they are known."""
        codes = embed(x) if codes is None else codes
        with torch.no_grad():
            augmented = embed(self.augment(x))
        return dlle_loss(codes, augmented)


class DIsoMap(nn.Module):
    """Module of :func:`disomap_loss`: mixes the inputs, embeds the mixture, compares.

    Args:
        alpha: Shares: ``"normal"`` (the authors'; it extrapolates) or ``"uniform"``.
        noise: Standard deviation of the noise on the target.

    Raises:
        ValueError: Unknown ``alpha``, negative ``noise``.

    >>> linear = nn.Linear(2, 3)
    >>> loss = DIsoMap(noise=0.0)(linear, torch.ones(4, 2), torch.zeros(4, 2))
    >>> bool(loss < 1e-6)  # an affine map sends mixtures to mixtures
    True
    """

    def __init__(self, alpha: str = "normal", *, noise: float = 0.05) -> None:
        super().__init__()
        self.alpha = check_choice("alpha", alpha, ALPHAS)
        self.noise = check_range("noise", noise, 0.0, math.inf, high_open=True)

    def forward(
        self, embed: Embedding, real: Tensor, fake: Tensor, codes: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The loss of a real and a generated batch under ``embed``; pass the codes of both if they are known."""
        t, g = (embed(real), embed(fake)) if codes is None else codes
        alpha = draw_alpha(real, self.alpha)
        return disomap_loss(embed(interpolate(real, fake, alpha)), t, g, alpha, noise=self.noise * torch.randn_like(t))


class ManifoldEntropy(nn.Module):
    """Module of :func:`manifold_entropy` with a bank of the last codes, which is part of ``state_dict``.

    A call in training mode takes the entropy of a batch and then puts the batch (of all processes) into the bank.

    Args:
        dim: Entries M of a code.
        size: Codes in the bank; it starts with uniform ones in (-1, 1), drawn from ``seed``.
        bank: ``"fifo"``, or ``"official"``: the authors' bank, see :func:`push_codes`, which asks for batches of
            equal size and is each process's own.
        seed: Of the first bank.
        k: Which neighbor; further options are those of :func:`manifold_entropy`.
        reduction: ``"log_mean"`` or ``"mean_log"``.
        metric: ``"euclidean"`` or ``"cosine"``.
        with_batch: Look among the batch, too.
        floor: Smallest distance.

    Raises:
        ValueError: Sizes below 1, unknown options.

    >>> entropy = ManifoldEntropy(2, size=4)
    >>> codes = torch.full((3, 2), 5.0)
    >>> entropy(codes) > 0, entropy.bank[-1]  # far from all in the bank, then in it
    (tensor(True), tensor([5., 5.]))
    """

    bank: Tensor

    def __init__(
        self,
        dim: int,
        size: int = 1024,
        *,
        bank: str = "fifo",
        seed: int = 0,
        k: int = 1,
        reduction: str = "log_mean",
        metric: str = "euclidean",
        with_batch: bool = False,
        floor: float = 1e-8,
    ) -> None:
        super().__init__()
        check_range("dim", dim, 1)
        check_neighbors(k, check_range("size", size, 1), inclusive=True)  # pyright: ignore[reportArgumentType]
        self.kind = check_choice("bank", bank, BANKS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("metric", metric, METRICS)
        check_range("floor", floor, 0.0, math.inf, low_open=True, high_open=True)
        self.options: dict[str, Any] = {"k": k, "reduction": reduction, "metric": metric, "floor": floor}
        if with_batch:
            self.options["with_batch"] = True
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("bank", 2 * torch.rand(size, dim, generator=generator) - 1)

    def forward(self, codes: Tensor) -> Tensor:
        """The entropy of ``codes``, ``(n, dim)``, against the bank."""
        bank = self.bank
        if self.kind == "official" and bank.ndim == 2:
            bank = bank.unsqueeze(1).expand(-1, len(codes), -1)
        value = manifold_entropy(codes, bank, **self.options)
        if self.training:
            self.bank = push_codes(bank, codes if self.kind == "official" else distributed.gather_cat(codes))
        return value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The authors' bank changes its shape while it is used.
        if self.kind == "official" and (saved := state_dict.get(f"{prefix}bank")) is not None:
            self.bank = self.bank.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class StochasticCode(nn.Module):
    """The authors' head: a mean and a log-variance from spectrally normalized linear maps, and a code drawn from them.

    In evaluation mode the code is the mean.

    Args:
        features: Size of the input.
        dim: Entries of the code.

    >>> StochasticCode(32, 8)(torch.zeros(4, 32)).shape
    torch.Size([4, 8])
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(features, 2 * dim))

    def forward(self, features: Tensor) -> Tensor:
        """Codes ``(n, dim)`` of features ``(n, features)``."""
        mean, log_variance = self.linear(features).chunk(2, dim=1)
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean


def _codes(name: str, codes: Tensor) -> Tensor:
    """Codes as ``(n, M)`` in float32 or float64."""
    if not check_tensor(name, codes).is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {codes.dtype}")
    if codes.ndim != 2 or codes.numel() == 0:
        raise ValueError(f"{name}: expected shape (n, M), not empty, got {tuple(codes.shape)}")
    if not torch.compiler.is_compiling() and not bool(codes.isfinite().all()):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return codes.to(torch.promote_types(codes.dtype, torch.float32))


def _like(name: str, codes: Tensor, other: Tensor) -> Tensor:
    codes = _codes(name, codes)
    if codes.shape != other.shape:
        raise ValueError(f"{name}: expected shape {tuple(other.shape)}, got {tuple(codes.shape)}")
    return codes


def _bank(bank: Tensor, codes: Tensor) -> Tensor:
    """The bank without gradient, in the type of the codes."""
    n, m = codes.shape
    fits = check_tensor("bank", bank).ndim in (2, 3) and bank.numel() > 0 and bank.shape[-1] == m
    if not fits or (bank.ndim == 3 and bank.shape[1] != n):
        raise ValueError(f"bank: expected shape (S, {m}) or (S, {n}, {m}), not empty, got {tuple(bank.shape)}")
    if not torch.compiler.is_compiling() and not bool(bank.isfinite().all()):
        raise ValueError("bank: expected finite values, got NaN or infinity")
    return bank.detach().to(codes)


def _on_sphere(codes: Tensor) -> Tensor:
    """Codes so long that the mean squared difference of two is one minus their cosine."""
    return math.sqrt(codes.shape[-1] / 2) * nn.functional.normalize(codes, dim=-1)
