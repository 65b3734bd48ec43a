"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import run_in_processes


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Only tests are collected here: doctests are looked for everywhere, and a helper may need an optional package."""
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if helper else None


@pytest.fixture(scope="session")
def run_distributed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """``run_distributed(fn, world_size, *args)``: ``fn(*args)`` in every gloo process; results by rank.

    Starting processes takes seconds: let one ``fn`` return all that a file's tests look at, from a
    module-scoped fixture.
    """

    def run(fn: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        return run_in_processes(tmp_path_factory.mktemp("processes"), fn, world_size, *args)

    return run
