"""Peak memory of a call, above what the process held before it.

CPU: the kernel's high-water mark (VmHWM), cleared through /proc/self/clear_refs just before the call. It is
exact only if freed memory goes back to the system at once, so a child process runs with glibc's mmap threshold
fixed at 64 KiB, and forks for each case. CUDA: the allocator's own peak.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.common import Built, Options, load_all

RESOLUTION = 1 << 18  # bytes; the kernel counts pages in batches
_MARK = "peaks: "
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

Peaks = dict[str, dict[str, int | None]]


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes that the call's peak adds; None where the system does not tell."""
    call()  # lazy initialization is not the call's memory
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return max(RESOLUTION, torch.cuda.max_memory_allocated() - before)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(RESOLUTION, _status("VmHWM") - before)
    except OSError:
        return None


def measure(
    benchmark: str,
    cases: Sequence[str],
    options: Options,
    tick: Callable[[str], object] = lambda name: None,
) -> tuple[Peaks, str]:
    """Peak bytes by case and competitor, measured in child processes, and a complaint if that failed.

    ``tick`` is called with each case's name when it is done.
    """
    request = {"benchmark": benchmark, "cases": list(cases), "options": asdict(options)}
    threads = str(options.threads)
    environment = {**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    peaks: Peaks = {}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory", json.dumps(request)],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(_MARK):
                found = json.loads(line.removeprefix(_MARK))
                peaks |= found
                tick(next(iter(found)))
        if child.wait() == 0:
            return peaks, ""
        errors.seek(0)
        return peaks, (errors.read().strip().splitlines() or ["the memory process failed"])[-1]


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def _measure_case(built: Built, options: Options) -> dict[str, int | None]:
    torch.set_num_threads(options.threads)
    gc.collect()
    gc.freeze()  # or every collection below walks through all that was imported
    peaks: dict[str, int | None] = {}
    for subject in (built.ours, *built.peers):
        if subject.run is None:
            continue
        try:
            peaks[subject.name] = peak_bytes(subject.run, options.device)
        except Exception:  # the timing run reports a peer's failure; here it only has no figure
            peaks[subject.name] = None
    return peaks


def _in_fork(measure_case: Callable[[], None]) -> None:
    """Run in a process of its own that need not import everything again."""
    pid = os.fork()
    if pid == 0:
        try:
            measure_case()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(pid, 0)


def main() -> None:
    """Measure what the request on the command line asks for, and print one line of JSON for each case."""
    request = json.loads(sys.argv[1])
    options = Options(**request["options"])
    torch.set_num_threads(1)  # a fork must not inherit a thread pool
    for case in load_all()[request["benchmark"]].cases(options):
        if case.name not in request["cases"]:
            continue
        built = case.build()
        if not built.timed or built.rounds == 1:
            continue

        def report(name: str = case.name, built: Built = built) -> None:
            print(_MARK + json.dumps({name: _measure_case(built, options)}), flush=True)

        if options.device == "cpu" and hasattr(os, "fork"):
            _in_fork(report)
        else:
            report()
        del built, report
        gc.collect()


if __name__ == "__main__":
    main()
