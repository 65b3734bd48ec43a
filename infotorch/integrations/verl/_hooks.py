"""Put functions around those of verl, whether their modules are loaded already or will be."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

Hook = Callable[[Any], None]
_waiting: dict[str, Hook] = {}


def when_loaded(module: str) -> Callable[[Hook], Hook]:
    """Decorator: call the function with a module of verl as soon as it is loaded."""

    def enter(hook: Hook) -> Hook:
        if module in sys.modules:
            hook(sys.modules[module])
        else:
            _waiting[module] = hook
        return hook

    return enter


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace ``owner.name``, a function or method, by ``around(original, *args, **kwargs)``.

    A function is replaced too in the modules of verl that have imported it by its name.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, wrapped)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("verl.") and getattr(module, name, None) is original:
            setattr(module, name, wrapped)


class _Finder(importlib.abc.MetaPathFinder):
    """Calls hooks after their modules have run, which is after this one where verl itself imports it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find a module as everybody does, and hook it after it has run."""
        hook = _waiting.pop(fullname, None)
        spec = None if hook is None else importlib.util.find_spec(fullname)
        if hook is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            hook(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
