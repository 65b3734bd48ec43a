"""Values as histograms: the HL-Gauss loss with its gradient, and the projection of C51 against a loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

BINS = 51
ROWS, QUICK_ROWS = (128, 8_192), (64,)
PORT, LOOP, DENSE = "hl-gauss-pytorch", "loop over atoms", "dense matrix"


@register("hl_gauss", "HL-Gauss loss and the projection of C51")
def cases(options: Options) -> list[Case]:
    """Both at every batch size."""
    return [
        Case(f"{kind}/{rows}x{BINS} float32", partial(build, rows, options))
        for kind, build in (("HL-Gauss loss, forward+backward", _loss), ("C51 projection", _projection))
        for rows in (QUICK_ROWS if options.quick else ROWS)
    ]


def _loss(rows: int, options: Options) -> Built:
    generator = torch.Generator().manual_seed(options.seed)
    logits = torch.randn(rows, BINS, generator=generator).to(options.device)
    target = 5 * torch.randn(rows, generator=generator).to(options.device)
    port = version_of(PORT)
    run = partial(_backward, logits, target, _port(options.device)) if port else None
    ours, wide = _ours(logits), _ours(logits.double())
    return Built(
        ours=Subject("HLGauss", version_of("infotorch") or "source tree", partial(_backward, logits, target, ours)),
        peers=[
            Subject(PORT, port or "-", run, "" if port else "not installed"),
            Subject("plain torch", torch.__version__, partial(_backward, logits, target, _plain), "checks nothing"),
        ],
        reference=partial(_backward, logits.double(), target.double(), wide),
        input_bytes=logits.numel() * 4,
    )


def _ours(logits: Tensor) -> Any:
    from infotorch.nn import HLGauss

    return HLGauss(-10.0, 10.0, BINS).to(logits.device, logits.dtype).loss


def _port(device: str) -> Any:
    from hl_gauss_pytorch import HLGaussLoss  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"sigma_to_bin_ratio": 0.75, "clamp_to_range": True, "warn_out_of_range": False}
    return HLGaussLoss(-10.0, 10.0, BINS, **options).to(device)


def _plain(logits: Tensor, target: Tensor) -> Tensor:
    """The fewest lines, nothing checked."""
    edges = torch.linspace(-10, 10, BINS + 1, device=logits.device)
    cdf = torch.erf((edges - target.clamp(-10, 10).unsqueeze(1)) / (2**0.5 * 0.75 * 20 / BINS))
    probs = cdf.diff(dim=1) / (cdf[:, -1:] - cdf[:, :1])
    return -(probs * logits.log_softmax(1)).sum(1).mean()


def _backward(logits: Tensor, target: Tensor, loss: Any) -> Results:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, target)
    return {"loss": value.detach(), "grad_logits": torch.autograd.grad(value, leaf)[0]}


def _projection(rows: int, options: Options) -> Built:
    from infotorch.nn import C51

    generator = torch.Generator().manual_seed(options.seed)
    probs = torch.randn(rows, BINS, generator=generator).softmax(1).to(options.device)
    reward = torch.randn(rows, generator=generator).to(options.device)
    discount = 0.99 * (torch.rand(rows, generator=generator) < 0.9).float().to(options.device)
    given = (probs, reward, discount)
    wide = tuple(x.double() for x in given)
    head = C51(-10.0, 10.0, BINS).to(options.device)
    return Built(
        ours=Subject("C51.project", version_of("infotorch") or "source tree", lambda: {"probs": head.project(*given)}),
        peers=[
            Subject(LOOP, torch.__version__, partial(_loop, *given)),
            Subject(DENSE, torch.__version__, partial(_dense, *given)),
        ],
        reference=partial(_dense, *wide),
        input_bytes=probs.numel() * 4,
        gates=[] if options.quick else [Gate(LOOP, "time_ratio", at_least=1.0)],
    )


def _atoms(probs: Tensor, reward: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
    centers = torch.linspace(-10, 10, BINS, dtype=probs.dtype, device=probs.device)
    return centers, (reward.unsqueeze(1) + discount.unsqueeze(1) * centers).clamp(-10, 10)


def _loop(probs: Tensor, reward: Tensor, discount: Tensor) -> Results:
    """The published algorithm: atom by atom, over the whole batch."""
    _, atoms = _atoms(probs, reward, discount)
    out, row = torch.zeros_like(probs), torch.arange(len(probs), device=probs.device)
    for j in range(BINS):
        place = (atoms[:, j] + 10) / (20 / (BINS - 1))
        lower = place.floor().clamp(0, BINS - 2).long()
        share = place - lower
        out[row, lower] += probs[:, j] * (1 - share)
        out[row, lower + 1] += probs[:, j] * share
    return {"probs": out}


def _dense(probs: Tensor, reward: Tensor, discount: Tensor) -> Results:
    """Every atom with every center, as rlax does."""
    centers, atoms = _atoms(probs, reward, discount)
    hat = (1 - (atoms.unsqueeze(1) - centers.view(1, -1, 1)).abs() / (20 / (BINS - 1))).clamp(min=0)
    return {"probs": (hat @ probs.unsqueeze(2)).squeeze(2)}
