"""Interleaved timing: every competitor once per round, in a new random order each round."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MIN_SAMPLE_S = 0.004  # calls shorter than this are repeated within a sample
_L2_BYTES = 256 << 20

Call = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Median of the paired ratio with its bootstrap 90 % interval."""

    median: float
    low: float
    high: float


def interleave(
    calls: Sequence[Call],
    *,
    rounds: int,
    budget_s: float,
    min_rounds: int = 5,
    seed: int = 0,
    device: str = "cpu",
    tick: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Seconds per call: one list per competitor, one entry per round.

    Each call runs once before (warm-up). After ``min_rounds`` no round starts that would exceed ``budget_s``.
    ``tick`` is called after each round.
    """
    clock = _cuda_seconds if device.startswith("cuda") else _cpu_seconds
    numbers = []
    for call in calls:
        once = clock(call, 1)
        numbers.append(max(1, min(1000, round(MIN_SAMPLE_S / max(once, 1e-7)))))
    order, shuffle = list(range(len(calls))), random.Random(seed).shuffle
    samples: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.freeze()  # or each round's collection walks through every imported library
    gc.disable()
    begin = time.perf_counter()
    try:
        for done in range(rounds):
            elapsed = time.perf_counter() - begin
            if done >= min_rounds and elapsed * (done + 1) / done > budget_s:
                break
            shuffle(order)
            for index in order:
                samples[index].append(clock(calls[index], numbers[index]))
            gc.collect()
            tick()
    finally:
        gc.enable()
        gc.unfreeze()
    return samples


def paired_ratio(peer: Sequence[float], ours: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Ratio:
    """Median over rounds of ``peer / ours``; the interval resamples rounds."""
    ratios = [p / o for p, o in zip(peer, ours, strict=True)]
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return Ratio(statistics.median(ratios), medians[int(0.05 * draws)], medians[int(0.95 * draws) - 1])


def _cpu_seconds(call: Call, number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - begin) / number


def _cuda_seconds(call: Call, number: int) -> float:
    total = 0.0
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush = torch.empty(_L2_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(number):
        flush.zero_()  # the previous competitor's data must not wait in the cache
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        total += begin.elapsed_time(end) / 1e3
    return total / number
