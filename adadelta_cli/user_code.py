"""Import Python files that users name."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def import_file(path: Path) -> ModuleType:
    """Import a file as a module of its name, with its folder on Python's path.

    Raises:
        ValueError: Python imports no file of this name.
        Exception: whatever the file raises.
    """
    sys.path.insert(0, str(path.parent))  # as `python FILE.py` would
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
