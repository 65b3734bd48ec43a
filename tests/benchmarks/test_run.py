from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("common", "machine", "memory", "peers", "run", "table", "timing", "token_stats")
    return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in names})


@pytest.fixture
def small(bench, monkeypatch):
    """token_stats with tiny shapes and one peer that is there and one that is not."""
    missing = bench.peers.Peer("missing", "no-such-distribution", lambda: None)
    for source in ("LOGITS", "HIDDEN"):
        shape = bench.token_stats.Shape(8, 64, torch.float32, 8 if source == "HIDDEN" else 0)
        monkeypatch.setattr(bench.token_stats, f"QUICK_{source}", (shape,))
        first = getattr(bench.peers, f"FROM_{source}")[0]
        monkeypatch.setattr(bench.peers, f"FROM_{source}", (first, missing))
    bench.peers.available.cache_clear()
    monkeypatch.setattr(bench.token_stats, "_gates", lambda *arguments: [])
    threads = torch.get_num_threads()
    yield bench
    torch.set_num_threads(threads)
    bench.peers.available.cache_clear()


def test_list_as_a_file():
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert [line.split()[0] for line in listed.stdout.splitlines()].count("token_stats") == 1


def test_unknown_benchmark_names_those_there_are(bench, capsys):
    with pytest.raises(SystemExit):
        bench.run.main(["nonesuch"])
    assert "token_stats" in capsys.readouterr().err


def test_quick_run_writes_machine_and_rows(small, tmp_path, capsys):
    target = tmp_path / "results" / "out.json"
    assert small.run.main(["token_stats", "--quick", "--no-memory", "--force", "--json", str(target)]) == 0
    written = json.loads(target.read_text())
    for key in ("cpu", "cores", "threads", "torch", "python", "load_1min", "date", "forced"):
        assert key in written["machine"]
    rows = written["rows"]
    sources = {row["case"].split("/")[0] for row in rows}
    assert sources == {"logits", "hidden", "values"}
    for row in rows:
        assert tuple(row)[:8] == small.common.KEYS
        assert row["ours"].startswith("token_stats")
        assert row["max_abs_error"] < 1e-4
        assert row["ours_finite"]
        assert row["memory_ratio"] is None
    plain = [row for row in rows if row["peer"] == small.peers.FROM_LOGITS[0].name]
    timed = [row for row in plain if not row["case"].startswith("values")]
    assert len(timed) == 3
    assert all(row["spread"][0] <= row["time_ratio"] <= row["spread"][1] for row in timed)
    forbidden = next(row for row in plain if "-inf" in row["case"])
    assert (forbidden["ours_finite"], forbidden["peer_finite"]) == (True, False)
    gone = [row for row in rows if row["peer"] == "missing"]
    assert gone
    assert all(row["note"] == "not installed" and row["time_ratio"] is None for row in gone)
    printed = capsys.readouterr().out
    assert printed.count("not installed") == len(gone)
    assert "nan" in printed


def test_busy_machine_writes_nothing(small, tmp_path, monkeypatch, capsys):
    target = tmp_path / "out.json"
    monkeypatch.setattr(small.machine, "load", lambda: 1e3)
    arguments = ["token_stats", "--quick", "--no-memory", "--only", "values", "--json", str(target)]
    assert small.run.main(arguments) == 2
    assert not target.exists()
    assert "--force" in capsys.readouterr().err
    assert small.run.main([*arguments, "--force"]) == 0
    assert json.loads(target.read_text())["machine"]["forced"] is True


def test_a_failing_peer_keeps_its_row(small, monkeypatch):
    def load():
        def fail(*tensors):
            raise RuntimeError("no such kernel")

        return fail

    monkeypatch.setattr(small.peers, "FROM_LOGITS", (small.peers.Peer("broken", "torch", load),))
    small.peers.available.cache_clear()
    rows = small.run.run(
        small.common.REGISTRY["token_stats"],
        small.common.Options(quick=True),
        only="logits/forward/",
        with_memory=False,
    )
    assert [(row["peer"], row["note"], row["time_ratio"]) for row in rows] == [
        ("broken", "RuntimeError: no such kernel", None)
    ]


def test_interleave_and_paired_ratio(bench):
    seen: list[str] = []
    calls = [lambda: seen.append("a"), lambda: seen.append("b")]
    bench.timing.MIN_SAMPLE_S, before = 0.0, bench.timing.MIN_SAMPLE_S
    try:
        samples = bench.timing.interleave(calls, rounds=20, budget_s=60.0)
    finally:
        bench.timing.MIN_SAMPLE_S = before
    assert [len(each) for each in samples] == [20, 20]
    order = seen[2:]  # after the warm-up
    assert {tuple(order[i : i + 2]) for i in range(0, 40, 2)} == {("a", "b"), ("b", "a")}
    ratio = bench.timing.paired_ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 3.0)


def test_calls_of_a_minute_run_once(bench):
    common, seen = bench.common, []

    def subject(name: str):
        def run():
            seen.append(name)
            return {"value": torch.zeros(1)}

        return common.Subject(name, "1", run)

    built = common.Built(subject("ours"), [subject("peer")], lambda: {"value": torch.zeros(1)}, 8, rounds=1)
    benchmark = common.Benchmark("slow", "", lambda options: [common.Case("case", lambda: built)])
    (row,) = bench.run.run(benchmark, common.Options(), with_memory=False)
    assert seen == ["ours", "peer"]
    assert row["rounds"] == 1
    assert row["time_ratio"] > 0
    assert row["max_abs_error"] == 0


def test_interleave_keeps_its_budget(bench):
    samples = bench.timing.interleave([lambda: None], rounds=50, budget_s=0.0, min_rounds=3)
    assert len(samples[0]) == 3


def test_errors_tell_values_from_gradients_and_see_nan(bench):
    truth = {"value": torch.tensor([1.0, 2.0]), "grad_x": torch.tensor([4.0, 0.0])}
    close = {"value": torch.tensor([1.0, 2.5]), "grad_x": torch.tensor([4.0, 1.0])}
    assert bench.common.errors(close, truth) == {"max_abs_error": 0.5, "grad_rel_error": 0.25}
    assert bench.common.errors({"value": torch.tensor([1.0, torch.nan])}, truth) == {"max_abs_error": None}


def test_gates(bench):
    gate = bench.common.Gate("peer", "time_ratio", at_least=1.2)
    assert gate.check({"time_ratio": 1.3}) == {"gate": "time_ratio >= 1.2", "passed": True}
    assert gate.check({"time_ratio": 1.1})["passed"] is False
    assert gate.check({"time_ratio": None})["passed"] is None
    error = bench.common.Gate("peer", "ours_max_abs_error", at_most=1e-5)
    assert error.check({"ours_max_abs_error": None})["passed"] is False  # NaN


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_counts_what_a_call_adds(bench):
    size = 64 << 20

    def call():
        return torch.ones(size, dtype=torch.int8)

    peak = bench.memory.peak_bytes(call)
    assert peak is None or size * 0.98 < peak < size * 1.1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_in_a_child(bench):
    options = bench.common.Options(quick=True)
    name = bench.token_stats.cases(options)[0].name
    peaks, complaint = bench.memory.measure("token_stats", [name], options)
    assert complaint == ""
    assert list(peaks) == [name]
    peak = peaks[name]["token_stats"]
    assert peak is None or bench.memory.RESOLUTION <= peak < 1 << 28


def test_memory_complains_rather_than_fails(bench):
    peaks, complaint = bench.memory.measure("nonesuch", ["case"], bench.common.Options(quick=True))
    assert peaks == {}
    assert "nonesuch" in complaint
