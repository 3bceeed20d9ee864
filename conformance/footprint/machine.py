"""The memories of this machine, as free as they are now."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from conformance.spec.tables import Memory

_MB = 1 << 20
_PATIENCE_S = 10.0


def free(root: Path = Path("/")) -> tuple[Memory, ...]:
    """Free RAM, as a process of ours could use it, and free memory of every GPU.

    Args:
        root: where ``proc`` and ``sys`` are; for tests.
    """
    gpus = tuple(Memory(kind="gpu", bytes=size) for size in _gpus() if size > 0)
    return (Memory(kind="cpu", bytes=max(1, _ram(root))), *gpus)


def _ram(root: Path) -> int:
    """What the kernel could give without swapping, within the limit of our control group."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, *_limits(root))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limits(root: Path) -> list[int]:
    """What control groups leave: their limit less what is used and cannot be dropped."""
    found = [2**63]
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        groups = root / "sys/fs/cgroup"
        most, now = _lines(groups / limit), _lines(groups / used)
        if most and now and most[0].isdigit():
            counts = dict(line.split() for line in _lines(groups / stat) if line.strip())
            files = sum(int(counts.get(name, 0)) for name in ("inactive_file", "active_file"))
            found.append(int(most[0]) - int(now[0]) + files)
    return found


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").splitlines()
    return []


def _gpus() -> list[int]:
    """Free bytes of each NVIDIA GPU; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            asked, capture_output=True, text=True, check=True, timeout=_PATIENCE_S
        ).stdout
        return [int(line) * _MB for line in said.split() if line.isdigit()]
    return []
