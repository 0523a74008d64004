"""Import Python files that users name."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from types import CodeType, ModuleType


class _SourceLoader(SourceFileLoader):
    """Reads the source each time.

    Python takes kept bytecode for current if the file's size and the second of its last change are
    the same; an author's next attempt may have both.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file, and keep nothing."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def import_file(path: Path) -> ModuleType:
    """Import a file as a module of its name, with its folder on Python's path.

    Raises:
        Exception: whatever the file raises.
    """
    sys.path.insert(0, str(path.parent))  # as `python FILE.py` would
    loader = _SourceLoader(path.stem, str(path))
    spec = ModuleSpec(path.stem, loader, origin=str(path))
    spec.has_location = True  # so that the module has a __file__
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    loader.exec_module(module)
    return module
