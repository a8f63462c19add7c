"""Python runs this when it starts and finds the folder on its path, where `ttlora run` puts it.

The methods are registered as soon as PEFT is imported, in the command and in the Python processes that it starts. What
does not import PEFT notices nothing.
"""

import importlib
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from typing import Any


class RegisterAfterPeft(MetaPathFinder):
    """Finds PEFT as all others do, and imports ttlora when it has been executed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Where PEFT is; None for every other module."""
        if fullname != "peft":
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in finders if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                try:
                    importlib.import_module("ttlora")
                except ModuleNotFoundError as error:
                    if error.name != "ttlora":
                        raise
                    print(f"ttlora run: {sys.executable} has PEFT, but no ttlora: install it there", file=sys.stderr)

            loader.exec_module = execute_and_register
        return spec


def run_next() -> None:
    """Run the module of this name that Python would have found without this folder."""
    here = os.path.realpath(os.path.dirname(__file__))
    others = [folder for folder in sys.path if os.path.realpath(folder) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


sys.meta_path.insert(0, RegisterAfterPeft())
run_next()
