"""The SFDA loss: against the same formula in several passes of autograd, and over what cross-entropy costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

# Slices of the prostate and of the heart as in the released recipe (fewer of them), and a volume.
SHAPES = {"2 classes, 8x384x384": (8, 2, 384, 384), "5 classes, 8x256x256": (8, 5, 256, 256)}
VOLUME = {"3 classes, 1x96x96x96": (1, 3, 96, 96, 96)}
QUICK = {"3 classes, 2x32x32": (2, 3, 32, 32)}
PASSES, PLAIN, SUPERVISED = "several passes of autograd", "one log-softmax and autograd", "cross_entropy"


@register("sfda", "entropy and class ratios of segmentation maps, with gradient")
def cases(options: Options) -> list[Case]:
    """Every shape in float32, forwards and with gradient; the first in bfloat16 too."""
    shapes = QUICK if options.quick else SHAPES | VOLUME
    found = [
        Case(f"{mode}/{name} float32", partial(_build, shape, torch.float32, mode != "forward", options))
        for name, shape in shapes.items()
        for mode in ("forward", "forward+backward")
    ]
    name, shape = next(iter(shapes.items()))
    return [*found, Case(f"forward+backward/{name} bfloat16", partial(_build, shape, torch.bfloat16, True, options))]


def _build(shape: tuple[int, ...], dtype: torch.dtype, backward: bool, options: Options) -> Built:
    generator = torch.Generator().manual_seed(options.seed)
    logits = (2 * torch.randn(shape, generator=generator)).to(options.device, dtype)
    prior = torch.rand(shape[:2], generator=generator).softmax(1).to(options.device)
    weights = torch.rand(shape[1], generator=generator).to(options.device)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator).to(options.device)

    def subject(
        name: str, version: str, loss: Callable[[Tensor], Tensor], note: str = "", floor: bool = False
    ) -> Subject:
        return Subject(name, version, partial(_run, logits, loss, backward), note, floor)

    gates = [] if options.quick or not backward else [Gate(PASSES, "time_ratio", at_least=1.0)]
    return Built(
        ours=subject("sfda_loss", version_of("infotorch") or "source tree", partial(_ours, prior, weights)),
        peers=[
            subject(PASSES, torch.__version__, partial(_passes, prior, weights), "as the released code orders it"),
            subject(PLAIN, torch.__version__, partial(_plain, prior, weights)),
            subject(
                SUPERVISED, torch.__version__, partial(_supervised, labels), "the supervised loss, another value", True
            ),
        ],
        reference=partial(_run, logits.double(), partial(_plain, prior.double(), weights.double()), backward),
        input_bytes=logits.numel() * logits.element_size(),
        gates=gates,
    )


def _run(logits: Tensor, loss: Callable[[Tensor], Tensor], backward: bool) -> Results:
    leaf = logits.detach().requires_grad_(backward)
    value = loss(leaf)
    if not backward:
        return {"loss": value.detach()}
    (grad,) = torch.autograd.grad(value, leaf)
    return {"loss": value.detach(), "grad_logits": grad}


def _ours(prior: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    from infotorch.adaptation import sfda_loss

    return sfda_loss(logits, prior, class_weights=weights).loss


def _passes(prior: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    """Probabilities, their logarithm, a weighted copy and its sum; then the ratios, image by image."""
    p = logits.float().softmax(1)
    weighted = weights.view(1, -1, *[1] * (logits.ndim - 2)) * p
    entropy = -(weighted * (p + 1e-10).log()).sum() / (p.sum() + 1e-10)
    divergence = 0.0
    for image, known in zip(p, prior, strict=True):
        ratios = image.flatten(1).sum(1) / (image.sum() + 1e-10)
        divergence = divergence + (ratios * ((ratios + 1e-10).log() - (known + 1e-10).log())).sum()
    return entropy + divergence / len(p)


def _plain(prior: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(1).flatten(2)
    p = log_p.exp()
    ratios = p.mean(2)
    divergence = (ratios * ((ratios + 1e-10).log() - (prior + 1e-10).log())).sum(1).mean()
    return divergence - ((p * log_p).sum(2) * weights).sum() / (p.shape[0] * p.shape[2])


def _supervised(labels: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)
