"""Run a function in several gloo processes on this machine."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _function(file: str, name: str) -> Callable[..., Any]:
    """The function of a file; by its path, since another package named ``tests`` may be installed."""
    spec = importlib.util.spec_from_file_location(f"in_process_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def _worker(rank: int, where: tuple[str, str], world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    fn = _function(*where)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    try:
        torch.save(fn(*args), f"{folder}/result{rank}.pt")
    except BaseException:
        Path(folder, f"error{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def run_in_processes(folder: Path, fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """``fn(*args)`` in every process of a new default group; the results, in rank order.

    ``fn`` must live at the top level of a file (a test file will do).
    """
    where = (str(inspect.getsourcefile(fn)), fn.__name__)
    try:
        mp.spawn(_worker, args=(where, world_size, str(folder), args), nprocs=world_size)
    except Exception as error:
        # The process that failed first need not be the one that spawn reports.
        reports = [path.read_text() for path in sorted(folder.glob("error*.txt"))]
        raise AssertionError("\n".join(reports) or str(error)) from error
    return [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(world_size)]
