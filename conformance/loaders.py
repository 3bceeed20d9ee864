"""Where the loaders of declared subjects are imported from.

Beside what is installed: the folder of ``models.toml`` and the current directory. Both come last,
so that nothing there can stand in for an installed library.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.spec import Spec


def import_path(spec: Spec, here: Path | None = None) -> list[str]:
    """``sys.path`` with both folders.

    Args:
        here: stands for the current directory.
    """
    own = (str(spec.path.parent.resolve()), str((here or Path.cwd()).resolve()))
    return [*sys.path, *(folder for folder in dict.fromkeys(own) if folder not in sys.path)]


def make_importable(spec: Spec) -> None:
    """Extend this process's ``sys.path``, and so that of its children."""
    sys.path[:] = import_path(spec)
