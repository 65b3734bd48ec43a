"""Who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "infotorch"
LOW = {"core", "data", "distributions", "estimators", "nn", "losses"}
# A room may import itself and the rooms named here. Field rooms may import all the low ones, and not each other.
ALLOWED = {
    "core": set(),
    "data": {"core"},
    "distributions": {"core"},
    "estimators": {"core", "distributions", "nn"},
    "nn": {"core"},
    "losses": {"core"},
    "report": {"core", "distributions", "estimators", "nn"},
    "rollout": LOW,
    "rlvr": LOW | {"rollout"},
}
ROOMS = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.rglob("*.py")))
FILES = sorted(PACKAGE.rglob("*.py"))
CORE_THIRD_PARTIES = {"torch", "numpy", "scipy", "triton", "ot"}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            base = node.module or ""
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    return {m.split(".")[1] for m in imported_modules(path) if m.startswith("infotorch.")} & set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_direction(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        assert not rooms_of(path), "the package itself imports no room"
        return
    room = parts[0]
    allowed = set(ROOMS) if room == "integrations" else ALLOWED.get(room, LOW)
    assert rooms_of(path) <= allowed | {room}
    assert room == "integrations" or "integrations" not in rooms_of(path)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_one_file_speaks_to_torch_distributed(path: Path) -> None:
    modules = imported_modules(path)
    speaks = any(m.startswith("torch.distributed") for m in modules)
    if speaks and path.name != "distributed.py":
        # Elsewhere the type of a process group may be named for annotations, and nothing else.
        assert {m for m in modules if m.startswith("torch.distributed")} <= {
            "torch.distributed",
            "torch.distributed.ProcessGroup",
        }
        assert "dist." not in path.read_text().replace("distributed.", "")


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(PACKAGE).parts[0] == "core"], ids=lambda p: p.name)
def test_core_is_tensors_only(path: Path) -> None:
    roots = {m.split(".")[0] for m in imported_modules(path)}
    outside = roots - set(sys.stdlib_module_names) - {"infotorch", "__future__"}
    assert outside <= CORE_THIRD_PARTIES
    assert "print(" not in path.read_text()


@pytest.mark.parametrize("module", ["infotorch", "infotorch.losses", "infotorch.core", "infotorch.estimators"])
def test_light_import(module: str) -> None:
    code = (
        "import json, sys, time, torch; start = time.perf_counter(); "
        f"import {module}; spent = time.perf_counter() - start; "
        "heavy = [m for m in ('lightning', 'pytorch_lightning', 'torchvision', 'timm', 'ot', 'triton', "
        "'transformers', 'matplotlib', 'sklearn') if m in sys.modules]; print(json.dumps([spent, heavy]))"
    )
    without = "import json, sys, torch; print(json.dumps([m for m in ('triton',) if m in sys.modules]))"
    spent, heavy = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    by_torch = json.loads(subprocess.check_output([sys.executable, "-c", without], text=True))
    assert set(heavy) <= set(by_torch), f"{module} pulls in {heavy}"
    assert spent < 1.0, f"{module} took {spent:.2f} s beyond torch"  # 0.3 s on an idle machine
