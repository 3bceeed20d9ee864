"""A trace on disk: every tensor of one run, appended as it appears and read back by mapping.

Layout of a directory: ``data.bin`` (raw little-endian tensors, 64-byte aligned, in the order in
which they appeared), ``index.json`` (name -> offset, dtype, shape; names may share an offset
when they are the same tensor; plus facts of the run). ``index.json`` is written last: a
directory without it is unfinished.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, BinaryIO

from conformance.errors import TraceError
from conformance.memory import MAPPED, OPEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    import torch

_ALIGN = 64
# One block's sites and component inputs: the same tensor appears again within a block, not later.
_REMEMBERED = 64


class TraceWriter:
    """Append tensors to a new trace directory. Use as a context manager; :meth:`finish` seals."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._file: BinaryIO = (directory / "data.bin").open("wb")
        self._entries: dict[str, dict[str, Any]] = {}
        # Identity of recently written tensors, so that one tensor under two names is kept once.
        # The version counter tells an in-place change apart.
        self._written: dict[tuple[Any, ...], tuple[str, torch.Tensor]] = {}

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, tensor: torch.Tensor, *, again: bool = True) -> None:
        """Store one tensor under ``name`` (names are unique).

        Args:
            again: whether it may appear under another name, and is held until it cannot.
        """
        if name in self._entries:
            raise TraceError(f"{name} appeared twice in one forward pass", "report this")
        key = (
            tensor.data_ptr(),
            tensor._version,
            tuple(tensor.shape),
            tensor.stride(),
            tensor.dtype,
        )
        if key in self._written:
            self._entries[name] = self._entries[self._written[key][0]]
            return
        at = self._file.tell()
        pad = -at % _ALIGN
        self._file.write(b"\0" * pad)
        self._file.write(_bytes(tensor))
        self._entries[name] = {
            "offset": at + pad,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
        if not again:
            return
        # Holding the tensor keeps its address from being reused while it is remembered.
        self._written[key] = (name, tensor)
        while len(self._written) > _REMEMBERED:
            self._written.pop(next(iter(self._written)))

    def next_run(self) -> None:
        """Forget tensor identities: call between forward passes."""
        self._written.clear()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Seal what was added so far, with whatever else must be known (JSON values).

        May be called again after more tensors: a trace can be read back while it grows.
        """
        self._file.flush()
        index = {"entries": self._entries, "facts": dict(facts)}
        (self._directory / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type] # numpy has it


class Trace:
    """A finished trace, mapped: a tensor costs memory only while it is looked at.

    Raises:
        TraceError: unfinished, or its files do not fit each other.
    """

    def __init__(self, directory: Path) -> None:
        import numpy as np

        try:
            index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
            self._looked_at = 0
            data = directory / "data.bin"
            self._data = (
                np.memmap(data, dtype=np.uint8, mode="r")
                if data.stat().st_size
                else np.zeros(0, dtype=np.uint8)
            )
        except (OSError, ValueError) as error:
            raise TraceError(
                f"{directory}: not a finished trace ({error})", "delete the directory and run again"
            ) from error
        try:
            self._entries: dict[str, dict[str, Any]] = index["entries"]
            self.facts: dict[str, Any] = index["facts"]
            end = max(
                (e["offset"] + _nbytes(e["dtype"], e["shape"]) for e in self._entries.values()),
                default=0,
            )
        except (KeyError, TypeError) as error:
            raise TraceError(
                f"{directory}: index.json is not a trace's ({error!r})",
                "delete the directory and run again",
            ) from error
        OPEN.add(self)
        if end > len(self._data):
            raise TraceError(
                f"{directory}: data.bin holds {len(self._data)} bytes, the index promises {end}",
                "delete the directory and run again",
            )

    def let_go(self) -> None:
        """Unmap what was looked at, where the system can; the file's pages stay in its cache."""
        import mmap

        self._looked_at = 0
        mapped = getattr(self._data, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)["shape"])

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            return self._entries[name]
        except KeyError:
            raise TraceError(
                f"the reference's trace has no {name}", "delete the trace cache and run again"
            ) from None

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor, or None if the trace has none of that name."""
        return self[name] if name in self._entries else None

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor, mapped from disk. Treat it as read-only: clone before changing it."""
        import warnings

        import torch

        entry = self._entry(name)
        size = _nbytes(entry["dtype"], entry["shape"])
        self._looked_at += size
        if self._looked_at > MAPPED:
            self.let_go()
        raw = self._data[entry["offset"] : entry["offset"] + size]
        if size == 0:
            return torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        with warnings.catch_warnings():
            # The map is read-only and stays so; torch cannot express that.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(raw, dtype=getattr(torch, entry["dtype"]))
        return flat.reshape(entry["shape"])


_ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "bool": 1}


def _nbytes(dtype: str, shape: list[int]) -> int:
    return _ITEM[dtype] * math.prod(shape)
