"""EntroPE: cutting windows into patches against loops over the series, and what a training step costs."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of
from infotorch.forecasting import (
    EntroPE,
    EntropyModel,
    EntropySegmenter,
    FixedSegmenter,
    Quantizer,
    boundary_mask,
    patch_lengths,
    patch_starts,
)

QUANTILE, MAX_LENGTH, LENGTH, CHANNELS = 0.9, 24, 96, 7
ROWS, QUICK_ROWS = (1_000, 20_000), (200,)
BATCHES, QUICK_BATCHES = (8, 64), (2,)
LOOP, SPLIT = "loop over the series", "loop that cuts long patches"


@register("entrope", "dynamic patches: cutting them, and a training step")
def cases(options: Options) -> list[Case]:
    """Entropies to patch lengths; forward and backward pass of the small core on 7 channels."""
    rows, batches = (QUICK_ROWS, QUICK_BATCHES) if options.quick else (ROWS, BATCHES)
    return [
        *(Case(f"patching/{n}x{LENGTH}", partial(_patching, n, options)) for n in rows),
        *(Case(f"training step/{b}x{LENGTH}x{CHANNELS}", partial(_training, b, options)) for b in batches),
    ]


def _ours_version() -> str:
    return version_of("infotorch") or "source tree"


def _patching(n: int, options: Options) -> Built:
    generator = torch.Generator().manual_seed(options.seed)
    # Entropies drift as those of real windows do, so that some patches exceed the limit.
    noise = torch.randn(n, LENGTH, generator=generator).cumsum(1)
    entropies = (noise - noise.amin(1, keepdim=True)).to(options.device)
    gates = [] if options.quick else [Gate(LOOP, "time_ratio", at_least=1.0)]
    return Built(
        ours=Subject("patch_lengths", _ours_version(), partial(_vectorized, entropies)),
        peers=[
            Subject(LOOP, "-", partial(_loop, entropies), "every step of every series in Python"),
            Subject(SPLIT, "-", partial(_split, entropies), "as the authors do: rules on tensors, then lists"),
        ],
        reference=partial(_loop, entropies),
        input_bytes=entropies.numel() * 4,
        gates=gates,
    )


def _padded(rows: list[list[int]]) -> Results:
    """Lengths in as many columns as there can be."""
    return {"lengths": torch.tensor([row + [0] * (LENGTH + 1 - len(row)) for row in rows])}


def _vectorized(entropies: Tensor) -> Results:
    lengths = patch_lengths(patch_starts(boundary_mask(entropies, quantile=QUANTILE), MAX_LENGTH))
    return {"lengths": F.pad(lengths, (0, LENGTH + 1 - lengths.shape[1]))}


def _loop(entropies: Tensor) -> Results:
    rows = []
    for row in entropies.cpu():
        threshold, lengths, current = float(row.quantile(QUANTILE)), [], 1
        for value in row.tolist():
            if value > threshold or current == MAX_LENGTH:
                lengths.append(current)
                current = 0
            current += 1
        rows.append([*lengths, current])
    return _padded(rows)


def _split(entropies: Tensor) -> Results:
    lengths = patch_lengths(patch_starts(boundary_mask(entropies, quantile=QUANTILE)))
    rows = []
    for row in lengths.tolist():
        cut = []
        for length in row:
            whole, rest = divmod(length, MAX_LENGTH)
            cut += [MAX_LENGTH] * whole + [rest] * (rest > 0)
        rows.append(cut)
    return _padded(rows)


def _training(batch: int, options: Options) -> Built:
    torch.manual_seed(options.seed)
    x = torch.randn(batch, LENGTH, CHANNELS, device=options.device).cumsum(1)
    y = torch.randn_like(x)
    by_entropy = EntropySegmenter(EntropyModel(), quantile=QUANTILE, max_length=MAX_LENGTH)
    models = {}
    for name, segmenter in {"entropy": by_entropy, "fixed": FixedSegmenter(8)}.items():
        sizes = {"channels": CHANNELS, "layers": 1, "multiple_of": 64, "dropout": 0.0}
        models[name] = EntroPE(segmenter, Quantizer(), **sizes).to(options.device)
    lengths = {name: patch_lengths(model.segment(x)) for name, model in models.items()}
    wide = copy.deepcopy(models["entropy"]).double()
    return Built(
        ours=Subject(
            "EntroPE, boundaries kept", _ours_version(), partial(_step, models["entropy"], x, y, lengths["entropy"])
        ),
        peers=[
            Subject("fixed patches of 8", "-", partial(_quiet, models["fixed"], x, y, lengths["fixed"]), "same core"),
            Subject("boundaries anew", "-", partial(_quiet, models["entropy"], x, y, None), "what keeping them saves"),
        ],
        reference=partial(_step, wide, x.double(), y.double(), lengths["entropy"]),
        input_bytes=x.numel() * 4,
    )


def _step(model: EntroPE, x: Tensor, y: Tensor, lengths: Tensor | None) -> Results:
    model.zero_grad()
    loss = F.mse_loss(model(x, lengths), y)
    loss.backward()
    return {"loss": loss.detach()}


def _quiet(model: EntroPE, x: Tensor, y: Tensor, lengths: Tensor | None) -> Results:
    """A step of another model: its loss is not to be compared."""
    _step(model, x, y, lengths)
    return {}
