"""Run benchmarks: ``python benchmarks/run.py NAME [--quick] [--json FILE]``, or ``--list``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: this directory is on the path, its parent is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tqdm import tqdm

from benchmarks import machine, memory, table, timing
from benchmarks.common import KEYS, Benchmark, Built, Case, Options, Subject, errors, load_all

_ROUNDS, _BUDGET_S = 15, 12.0
_QUICK_ROUNDS, _QUICK_BUDGET_S = 5, 0.4

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print the table; 0 on success, 2 where the machine is too busy."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="Measure infotorch against its peers.")
    parser.add_argument("name", nargs="?", help="benchmark to run (see --list)")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows to FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of inputs and order")
    parser.add_argument("--no-memory", action="store_true", help="skip the memory measurements")
    parser.add_argument("--force", action="store_true", help="write FILE even from a busy machine")
    given = parser.parse_args(arguments)

    registry = load_all()
    if given.list:
        for benchmark in registry.values():
            print(f"{benchmark.name:<16} {benchmark.summary}")
        return 0
    if given.name not in registry:
        parser.error(f"name: expected one of {', '.join(registry)}, got {given.name!r}")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device: no CUDA device here")
    if given.json and _busy(machine.load()) and not given.force:
        return 2

    options = Options(given.quick, given.device, given.threads, given.seed)
    torch.set_num_threads(options.threads)
    described = machine.describe(options)
    rows = run(registry[given.name], options, only=given.only, with_memory=not given.no_memory)
    print(table.render(rows))
    described |= {"load_1min_at_end": round(machine.load(), 2), "quick": given.quick}
    if given.json:
        described["forced"] = _busy(max([described["load_1min"], *(row["load_1min"] for row in rows)]))
        if described["forced"] and not given.force:
            return 2
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"machine": described, "rows": rows}, indent=1, allow_nan=False) + "\n")
    return 0


def run(benchmark: Benchmark, options: Options, *, only: str = "", with_memory: bool = True) -> list[Row]:
    """All rows of one benchmark."""
    cases = [case for case in benchmark.cases(options) if only in case.name]
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    peaks: memory.Peaks = {}
    if with_memory:
        with tqdm(total=len(cases), desc=f"{benchmark.name}, memory", disable=None, unit="case") as bar:
            peaks, complaint = memory.measure(
                benchmark.name, [case.name for case in cases], options, lambda name: bar.update()
            )
        _complain(complaint)
    rows: list[Row] = []
    with tqdm(total=len(cases) * (rounds + 1), desc=benchmark.name, disable=None, unit="round") as bar:
        for position, case in enumerate(cases):
            bar.set_postfix_str(case.name)
            rows += _rows(benchmark.name, case, options, rounds, peaks.get(case.name, {}), bar)
            bar.n = (position + 1) * (rounds + 1)  # rounds that the budget cut off count, too
            bar.refresh()
    return rows


def _rows(name: str, case: Case, options: Options, rounds: int, peaks: dict[str, int | None], bar: tqdm) -> list[Row]:
    built = case.build()
    truth = built.reference()
    subjects: list[Subject] = [built.ours, *built.peers]
    found: dict[str, dict[str, float | None]] = {}
    failed: dict[str, str] = {}
    samples: dict[str, list[float]] = {}
    for subject in subjects:
        if subject.run is None:
            failed[subject.name] = subject.note or "not available"
            continue
        try:
            begin = time.perf_counter()
            found[subject.name] = errors(subject.run(), truth)
            samples[subject.name] = [time.perf_counter() - begin]
        except Exception as error:
            if subject is built.ours:
                raise
            failed[subject.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    del truth
    alive = [subject for subject in subjects if subject.name not in failed]
    load = machine.load()
    if built.timed and built.rounds > 1:
        measured = timing.interleave(
            [subject.run for subject in alive if subject.run],
            rounds=rounds,
            min_rounds=built.rounds,
            budget_s=_QUICK_BUDGET_S if options.quick else _BUDGET_S,
            seed=options.seed,
            device=options.device,
            tick=bar.update,
        )
        samples = dict(zip((subject.name for subject in alive), measured, strict=True))
    elif not built.timed:
        samples = {}
    load = max(load, machine.load())
    rows = []
    for peer in built.peers:
        row = _row(name, case, built, peer, samples, peaks, found)
        row["load_1min"] = round(load, 2)
        if note := failed.get(peer.name, peer.note):
            row["note"] = note
        gates = [gate.check(row) for gate in built.gates if gate.peer == peer.name]
        if gates:
            row["gates"] = gates
        rows.append(row)
    return rows


def _row(
    name: str,
    case: Case,
    built: Built,
    peer: Subject,
    samples: dict[str, list[float]],
    peaks: dict[str, int | None],
    found: dict[str, dict[str, float | None]],
) -> Row:
    ours = built.ours
    own, other = found[ours.name], found.get(peer.name)
    row: Row = dict.fromkeys(KEYS)
    row |= {"benchmark": name, "case": case.name, "ours": ours.name, "peer": peer.name}
    row |= {"peer_version": peer.version, "max_abs_error": own.get("max_abs_error")}
    row |= {"ours_version": ours.version, "floor": peer.floor}
    for who, deviations in (("ours", own), ("peer", other)):
        if deviations is not None:
            row |= {f"{who}_{kind}": value for kind, value in deviations.items()}
            row[f"{who}_finite"] = None not in deviations.values()
    mine, theirs = samples.get(ours.name), samples.get(peer.name)
    if mine and theirs:
        ratio = timing.paired_ratio(theirs, mine)
        row["time_ratio"] = _round(ratio.median)
        row["spread"] = [_round(ratio.low), _round(ratio.high)]
        row["rounds"] = len(mine)
        for who, seconds in (("ours", mine), ("peer", theirs)):
            row[f"{who}_ms"] = _round(1e3 * statistics.median(seconds))
            row[f"{who}_best_ms"] = _round(1e3 * min(seconds))
    own_peak, other_peak = peaks.get(ours.name), peaks.get(peer.name)
    if own_peak is not None:
        row["ours_memory"] = _round(own_peak / built.input_bytes)
    if own_peak is not None and other_peak is not None and not peer.floor:
        row["memory_ratio"] = _round(other_peak / own_peak)
        row["peer_memory"] = _round(other_peak / built.input_bytes)
    row["input_bytes"] = built.input_bytes
    return row


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _busy(load: float) -> bool:
    if load <= machine.cores():
        return False
    _complain(f"load {load:.2f} on {machine.cores()} cores: not a machine to publish from (--force does)")
    return True


def _complain(text: str) -> None:
    if text:
        tqdm.write(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
