"""Peak memory of a call, above what the process held before it.

CPU: the kernel's high-water mark (VmHWM), cleared through /proc/self/clear_refs just before the call. It is
exact only if freed memory goes back to the system at once, so cases run in a child process with glibc's mmap
threshold fixed at 64 KiB. CUDA: the allocator's own peak.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.common import Case, Options, load_all

RESOLUTION = 1 << 18  # bytes; the kernel counts pages in batches
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


def measure(benchmark: str, cases: Sequence[str], options: Options, timeout_s: float = 600.0) -> tuple[Peaks, str]:
    """Peak bytes by case and competitor, measured in one child process, and a complaint if that failed."""
    request = {"benchmark": benchmark, "cases": list(cases), "options": asdict(options)}
    threads = str(options.threads)
    environment = {**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", json.dumps(request)],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1]), ""
    except subprocess.CalledProcessError as error:
        return {}, (error.stderr.strip().splitlines() or ["failed"])[-1]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, IndexError) as error:
        return {}, f"{type(error).__name__}: {error}"


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def _measure_case(case: Case, device: str) -> dict[str, int | None]:
    built = case.build()
    peaks: dict[str, int | None] = {}
    if not built.timed:
        return peaks
    gc.collect()
    gc.freeze()  # or every collection below walks through all that was imported
    for subject in (built.ours, *built.peers):
        if subject.run is None:
            continue
        try:
            peaks[subject.name] = peak_bytes(subject.run, device)
        except Exception:  # a peer's failure is reported by the timing run; here it only has no figure
            peaks[subject.name] = None
    return peaks


def main() -> None:
    """Measure what the request on the command line asks for, and print the result as one line of JSON."""
    request = json.loads(sys.argv[1])
    options = Options(**request["options"])
    torch.set_num_threads(options.threads)
    cases = load_all()[request["benchmark"]].cases(options)
    wanted = {case.name: case for case in cases if case.name in request["cases"]}
    peaks = {name: _measure_case(case, options.device) for name, case in wanted.items()}
    sys.stdout.write("\n" + json.dumps(peaks) + "\n")


if __name__ == "__main__":
    main()
