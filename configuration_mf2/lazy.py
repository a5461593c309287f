"""Registering with a library once it is imported, without importing it, and names that a package loads at their use."""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar


_ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2")


class _WaitingActions(MetaPathFinder, threading.local):
    """Actions by the module that they wait for. None runs in a thread that has half imported a file of the three rooms:
    it may need that file."""

    actions: ClassVar[dict[str, list[Callable[[], Any]]]] = {}
    depth = 0
    searching = False

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if self.searching or (name not in self.actions and name.partition(".")[0] not in _ROOMS):
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                self.depth += 1
                try:
                    execute(module)
                finally:
                    self.depth -= 1
                self.act()

            spec.loader.exec_module = execute_and_act
        return spec

    def act(self) -> None:
        for name in [name for name in list(self.actions) if sys.modules.get(name) and not self.depth]:
            for action in self.actions.pop(name, ()):
                action()


_WAITING = _WaitingActions()
sys.meta_path.insert(0, _WAITING)


def when_imported(name: str, action: Callable[[], Any]) -> None:
    """Runs the action as soon as the module `name` is imported, at once if it is; never without torch."""
    if importlib.util.find_spec("torch") is not None:
        _WAITING.actions.setdefault(name, []).append(action)
        _WAITING.act()


def lazy_names(package: str, files: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`; files: public name -> the file of the package that defines it."""

    def load(name: str) -> Any:
        if name not in files:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{files[name]}"), name)

    return load


__all__ = ["lazy_names", "when_imported"]
