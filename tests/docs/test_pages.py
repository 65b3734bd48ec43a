"""The documentation is complete: every public name has an entry, every method a page; records become tables."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from infotorch.losses import recipe_names

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
records = pytest.importorskip("records")

ROOMS = {
    "core": "core",
    "losses": "losses",
    "rollout": "rollout",
    "rlvr": "rlvr",
    "rlvr.tasks": "rlvr",
    "nn": "nn",
    "rl": "rl",
    "report": "report",
}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_documented(room: str) -> None:
    page = (DOCS / "api" / f"{ROOMS[room]}.md").read_text()
    entries = set(re.findall(r"^\.\. auto\w+:: (\S+)", page, flags=re.MULTILINE))
    public = importlib.import_module(f"infotorch.{room}").__all__
    # Submodules that a room re-exports are documented as a whole or name by name.
    names = [name for name in public if f"infotorch.{room}.{name}" not in sys.modules or name in ("ppo", "sapo")]
    assert not [name for name in names if f"infotorch.{room}.{name}" not in entries]


def test_every_recipe_is_on_a_method_page() -> None:
    text = "".join(path.read_text() for path in (DOCS / "methods").glob("*.md"))
    assert not [name for name in recipe_names() if f"`{name}`" not in text and name != "ppo"]


def test_every_page_is_reachable() -> None:
    index = (DOCS / "index.md").read_text()
    pages = [p.relative_to(DOCS).with_suffix("").as_posix() for p in DOCS.rglob("*.md") if "_build" not in p.parts]
    assert not [page for page in pages if page != "index" and not re.search(rf"^{page}$", index, re.MULTILINE)]


def test_every_result_has_a_record_with_a_command() -> None:
    for path in (DOCS / "results").glob("*.json"):
        text = records.experiment(path.stem, records.load(path))
        assert "```bash\npython " in text
        assert "| --- |" in text


def test_missing_record_is_said() -> None:
    text = records.experiment("nothing", records.load(DOCS / "nothing.json"))
    assert text == "No result is recorded yet for `nothing`."


def test_incomplete_record_fails() -> None:
    with pytest.raises(ValueError, match="lacks command, results"):
        records.experiment("x", {"claim": "", "experiment": ""})


def test_runs_and_summaries_become_one_cell() -> None:
    runs = records.tables({"grpo": [{"reward": 0.5}, {"reward": 0.7}], "dapo": {"reward": {"mean": 0.25, "std": 0.01}}})
    assert runs.splitlines() == [
        "|  | reward |",
        "| --- | --: |",
        "| `grpo` | 0.600 ± 0.141 |",
        "| `dapo` | 0.250 ± 0.010 |",
    ]


def test_columns_are_chosen() -> None:
    text = records.tables({"grpo": {"reward": 1.0, "seconds": 5.0}}, ["reward"])
    assert "reward" in text
    assert "seconds" not in text


def test_losses_are_counted_and_marked() -> None:
    row = {"benchmark": "b", "case": "c", "ours": "o", "peer_version": "1", "memory_ratio": None}
    text = records.benchmark(
        {
            "machine": {"cpu": "some", "threads": 1},
            "rows": [
                {**row, "peer": "slow", "time_ratio": 2.0, "spread": [1.9, 2.1]},
                {**row, "peer": "fast", "time_ratio": 0.5, "spread": [0.4, 0.6]},
                {**row, "peer": "bound", "time_ratio": 0.5, "floor": True},
            ],
        }
    )
    assert "Faster than the peer in 1 of 2 timed rows, slower in 1 (bold)." in text
    assert "| fast 1 | **0.5x** |" in text
    assert "| bound 1 (lower bound) | 0.5x |" in text
