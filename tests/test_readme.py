"""What the README says is true: its code runs, its commands are those of the continuous integration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infotorch.losses import recipe_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="needs a source checkout")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


# What needs a trainer of another library is shown, and tested in tests/integrations.
RUNS = [code for code in blocks("python") if "infotorch.integrations" not in code]


@pytest.mark.parametrize("code", RUNS, ids=lambda code: code.splitlines()[1])
def test_examples_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    value = namespace["out"].loss if "out" in namespace else torch.tensor(namespace["mi"].mutual_information_)
    assert value.isfinite()


def test_first_example_is_short_and_prints() -> None:
    first = blocks("python")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 10
    assert "print(" in first


def test_commands_are_those_of_ci() -> None:
    shown = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--show"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.splitlines()
    main_job, tests = shown
    assert main_job == "pip install -e . && python examples/rlvr.py"
    assert tests == "pip install -e '.[test]' && pytest"
    commands = "".join(blocks("bash")).splitlines()
    assert commands[0] == main_job
    assert commands[1] == tests
    assert not re.search(r"^\s*pytest\b", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)


def test_named_files_exist() -> None:
    for path in re.findall(r"(?:python |\]\()((?:examples|benchmarks|docs/_ext)/[\w/.]+|[A-Z]+(?:\.md)?)", README):
        assert (ROOT / path).exists(), path


def test_table_lists_every_recipe() -> None:
    table = README.split("## Methods")[1].split("## ")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in row.split(", ")]
    assert sorted(name.strip("`") for name in named) == recipe_names()


def test_results_are_those_recorded() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        import records
    finally:
        sys.path.pop(0)
    assert len(records.BLOCK.findall(README)) == 1
    assert records.fill(README, ROOT) == README, "run: python docs/_ext/records.py"


def test_losses_import_nothing_heavy() -> None:
    heavy = ("lightning", "torchvision", "timm", "ot", "transformers", "matplotlib")
    code = f"import sys, infotorch.losses; print([m for m in {heavy} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert found.stdout.strip() == "[]"
