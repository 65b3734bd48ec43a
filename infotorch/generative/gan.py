"""The Lightning module that trains a generator and a discriminator with manifold entropy.

It holds no mathematics: it wires the terms of `infotorch.generative.mee` and an adversarial loss to batches, keeps a
moving average of the generator, and draws all random numbers of a step from the seed and the number of the step, so
that a run continued from a checkpoint goes on bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from infotorch.core import distributed
from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.generative.adversarial import LOSSES, discriminator_loss, generator_loss, r1_penalty
from infotorch.generative.mee import DLLE, DIsoMap, ManifoldEntropy, flip_and_noise

__all__ = ["MEEGAN"]


class MEEGAN(LightningModule):
    r"""A generative adversarial network whose discriminator embeds, with DLLE, DIsoMap and manifold entropy.

    The discriminator minimizes :math:`L + w_1 L_\mathrm{DLLE} + w_2 L_\mathrm{DIsoMap} - c\, H(D(x))`, the generator
    :math:`L - c\, H(D(G(z)))`. With all four weights 0 it is an ordinary network with the chosen loss.

    Args:
        generator: Maps latents ``(n, latent_dim)`` to samples.
        discriminator: Maps samples to codes ``(n, M)``. Bound its slope, by spectral normalization say, where DIsoMap
            or entropy are in use: both lose their hold on an unbounded one.
        estimator: Entropy of codes; a copy with a bank of its own serves the real ones.
        latent_dim: Entries of a standard normal latent.
        loss: ``"mean"`` (the authors'), ``"hinge"`` or ``"non_saturating"``.
        dlle: Weight of DLLE, on real and generated batches.
        disomap: Weight of DIsoMap.
        entropy: Weight of the entropy of generated codes, in the generator's loss. The authors' script has 1, their
            instructions 5e-4.
        entropy_real: Weight of the entropy of real codes, in the discriminator's loss; by default as ``entropy``.
        ramp: Steps over which the entropies' weights grow from 0.
        r1: Weight of R1, :math:`\frac12 r_1 \overline{\lVert \nabla s \rVert^2}`.
        generator_every: Batches per step of the generator; the discriminator takes one at each.
        augment: The small change of DLLE.
        alpha: Shares of DIsoMap, ``"normal"`` or ``"uniform"``.
        lr: Learning rate of Adam, of both networks.
        betas: Of Adam.
        ema: Decay of the moving average of the generator's weights, which :meth:`sample` uses.
        seed: Seed of all random draws.

    Raises:
        TypeError: ``estimator`` is no `ManifoldEntropy`.
        ValueError: A weight below 0, unknown options; in training, batches that are not finite or that the generator's
            samples do not match.

    Reference: H. Liu et al., 2022, arXiv:2208.12055.

    Deviations from the authors' script: the learning rate stays as it is, training data are what you pass, and the
    bank is that of `ManifoldEntropy`. The defaults are those of its instructions for CIFAR-10.

    For several processes use the strategy ``"ddp_find_unused_parameters_true"``: a step uses one network's parameters.

    >>> from infotorch.nn import mlp
    >>> module = MEEGAN(mlp((4, 16, 2)), mlp((2, 16, 8)), ManifoldEntropy(8, 64), latent_dim=4)
    >>> module.sample(3, seed=0).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        estimator: ManifoldEntropy,
        *,
        latent_dim: int,
        loss: str = "mean",
        dlle: float = 1.0,
        disomap: float = 1.0,
        entropy: float = 5e-4,
        entropy_real: float | None = None,
        ramp: int = 0,
        r1: float = 0.0,
        generator_every: int = 3,
        augment: Callable[[Tensor], Tensor] = flip_and_noise,
        alpha: str = "normal",
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.0, 0.999),
        ema: float = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if not isinstance(estimator, ManifoldEntropy):
            raise TypeError(f"estimator: expected a ManifoldEntropy, got {type(estimator).__name__}")
        weights = {"dlle": dlle, "disomap": disomap, "entropy": entropy, "r1": r1, "ramp": ramp}
        weights["entropy_real"] = entropy if entropy_real is None else entropy_real
        for name, value in weights.items():
            check_range(name, value, 0.0, math.inf, high_open=True)
        for name, value in {"latent_dim": latent_dim, "generator_every": generator_every}.items():
            check_range(name, value, 1)
        check_range("lr", lr, 0.0, math.inf, low_open=True, high_open=True)
        check_range("ema", ema, 0.0, 1.0, high_open=True)
        self.weights, self.loss = weights, check_choice("loss", loss, LOSSES)
        self.latent_dim, self.generator_every, self.seed = latent_dim, generator_every, seed
        self.lr, self.betas = lr, betas
        self.generator, self.discriminator = generator, discriminator
        self.dlle, self.disomap = DLLE(augment), DIsoMap(alpha)
        self.fake_entropy, self.real_entropy = estimator, copy.deepcopy(estimator)
        average = get_ema_multi_avg_fn(ema)
        self.average = AveragedModel(generator, multi_avg_fn=average).requires_grad_(False)
        self.batches = 0

    def forward(self, latents: Tensor) -> Tensor:
        """Samples of the averaged generator."""
        return self.average(latents)

    @torch.no_grad()
    def sample(self, count: int, *, seed: int = 0, average: bool = True) -> Tensor:
        """Draw samples, in evaluation mode, from the averaged generator or from the present one."""
        network = self.average if average else self.generator
        generator = torch.Generator(self.device).manual_seed(seed)
        kind = next(network.parameters()).dtype
        latents = torch.randn(count, self.latent_dim, generator=generator, device=self.device, dtype=kind)
        training = network.training
        samples = network.eval()(latents)
        network.train(training)
        return samples

    def training_step(self, batch: Tensor | Sequence[Any], batch_idx: int) -> None:
        """One step of the discriminator, and every ``generator_every``-th time one of the generator."""
        real = check_tensor("batch", batch if isinstance(batch, Tensor) else batch[0])
        if not bool(real.isfinite().all()):
            raise ValueError("batch: expected finite values, got NaN or infinity")
        with _seeded((self.seed * 1_000_003 + self.batches) * 1_009 + distributed.rank(), real.device):
            latents = torch.randn(len(real), self.latent_dim, device=real.device, dtype=real.dtype)
            metrics = self._step_discriminator(real, latents)
            self.batches += 1
            if self.batches % self.generator_every == 0:
                metrics |= self._step_generator(latents)
        self.log_dict({name: value.detach() for name, value in metrics.items()}, batch_size=len(real))

    def _step_discriminator(self, real: Tensor, latents: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generator(latents)
        if fake.shape != real.shape:
            raise ValueError(
                f"batch: expected samples like the generator's, {tuple(fake.shape)}, got {tuple(real.shape)}"
            )
        embed, weights = self.discriminator, self.weights
        optimizer = self._take(0)
        if weights["r1"]:
            real = real.detach().requires_grad_()
        t, g = embed(real), embed(fake)
        metrics = {"discriminator": discriminator_loss(t, g, self.loss)}
        loss = metrics["discriminator"]
        if weights["r1"]:
            metrics["r1"] = r1_penalty(t, real)
            loss = loss + 0.5 * weights["r1"] * metrics["r1"]
            real = real.detach()
        if weights["dlle"]:
            metrics["dlle"] = self.dlle(embed, real, t) + self.dlle(embed, fake, g)
            loss = loss + weights["dlle"] * metrics["dlle"]
        if weights["disomap"]:
            metrics["disomap"] = self.disomap(embed, real, fake, (t, g))
            loss = loss + weights["disomap"] * metrics["disomap"]
        if weights["entropy_real"]:
            metrics["entropy_real"] = self.real_entropy(t)
            loss = loss - self._ramped("entropy_real") * metrics["entropy_real"]
        self._descend(loss, optimizer)
        return metrics

    def _step_generator(self, latents: Tensor) -> dict[str, Tensor]:
        optimizer = self._take(1)
        codes = self.discriminator(self.generator(latents))
        metrics = {"generator": generator_loss(codes, self.loss)}
        loss = metrics["generator"]
        if self.weights["entropy"]:
            metrics["entropy"] = self.fake_entropy(codes)
            loss = loss - self._ramped("entropy") * metrics["entropy"]
        self._descend(loss, optimizer)
        self.average.update_parameters(self.generator)
        return metrics

    def _ramped(self, name: str) -> float:
        return self.weights[name] * min(1.0, self.batches / max(1.0, self.weights["ramp"]))

    def _take(self, index: int) -> Any:
        """One network's optimizer; gradients are computed for that network alone."""
        optimizers: Any = self.optimizers()
        self.toggle_optimizer(optimizers[index])
        return optimizers[index]

    def _descend(self, loss: Tensor, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the discriminator and for the generator."""
        networks = (self.discriminator, self.generator)
        return [torch.optim.Adam(network.parameters(), lr=self.lr, betas=self.betas) for network in networks]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the number of batches seen."""
        checkpoint["batches"] = self.batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint of this module."""
        self.batches = checkpoint["batches"]


@contextmanager
def _seeded(key: int, device: torch.device) -> Iterator[None]:
    """The global generators of the CPU and of ``device`` seeded with ``key``, and restored afterwards.

    Not by `torch.manual_seed`, which walks through all kinds of accelerators and took a tenth of a small step.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(key % 2**63)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(key % 2**63)
        yield
