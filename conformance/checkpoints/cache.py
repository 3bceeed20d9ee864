"""The cache directory: entries that are whole or absent, found again without reading them.

``CACHE/checkpoints/KEY/manifest.json`` says where a checkpoint's files are (``files`` beside it,
or a directory elsewhere), their sizes and times, and their digest. An entry is prepared in a
hidden directory next to it under a lock and renamed into place at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from conformance.checkpoints.local import checkpoint_files, has_tokenizer

Progress = Callable[[str], None]

MANIFEST = "manifest.json"
#: What a preparer puts below this name in its directory is removed before the entry appears.
SCRATCH = "scratch"


def cache_dir() -> Path:
    """``$CONFORMANCE_CACHE``, or ``conformance`` in the user's cache directory."""
    named = os.environ.get("CONFORMANCE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("conformance")


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint that was found whole."""

    directory: Path
    digest: str
    has_tokenizer: bool


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What can be learned of a file without reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: Path) -> _Stamp:
        stat = file.stat()
        return cls(stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class _Manifest:
    model: str
    directory: str
    digest: str
    files: dict[str, _Stamp]

    @classmethod
    def read(cls, root: Path) -> _Manifest | None:
        """None where there is none, or none that can be understood."""
        try:
            data: dict[str, Any] = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            stamps = {str(name): _Stamp(**stamp) for name, stamp in data.pop("files").items()}
            return cls(**data, files=stamps)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, root: Path) -> None:
        partial = root / f".{MANIFEST}.{os.getpid()}"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(root / MANIFEST)


class Store:
    """The checkpoints below one cache directory."""

    def __init__(self, cache: Path) -> None:
        self._base = cache.absolute() / "checkpoints"

    def there(self, key: str) -> Entry | None:
        """The entry of that key, if it is there and sound."""
        return _find(self._base / key)

    def entry(self, key: str, model: str, prepare: Callable[[Path], Path], say: Progress) -> Entry:
        """The entry of that key; prepared first if it is absent or damaged.

        Args:
            key: a directory name.
            model: for people who look into the cache.
            prepare: given an empty directory, returns the one that holds the checkpoint.
            say: progress.
        """
        root = self._base / key
        if (found := _find(root)) is not None:
            return found
        self._base.mkdir(parents=True, exist_ok=True)
        with _lock(self._base / f"{key}.lock", f"{model}: another process prepares it", say):
            if (found := _find(root) or _find_by_content(root)) is not None:
                return found
            self._discard(key)
            work = self._base / f".{key}.{os.getpid()}"
            work.mkdir()
            try:
                manifest = _describe(model, prepare(work), work)
                manifest.write(work)
                shutil.rmtree(work / SCRATCH, ignore_errors=True)
                work.replace(root)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        found = _find(root)
        if found is None:
            raise OSError(f"{root} changed while it was being written")
        return found

    def _discard(self, key: str) -> None:
        """Remove a damaged entry and what a killed process left; the lock is held."""
        root = self._base / key
        if root.exists():
            root.replace(self._base / f".{key}.damaged")  # never half-removed under its name
        for leftover in self._base.glob(f".{key}.*"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path, reason: str, say: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{reason}; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _describe(model: str, directory: Path, work: Path) -> _Manifest:
    directory = directory.absolute()
    files = {name: _Stamp.of(directory / name) for name in checkpoint_files(directory)}
    inside = directory.is_relative_to(work.absolute())
    return _Manifest(
        model=model,
        directory=str(directory.relative_to(work.absolute()) if inside else directory),
        digest=content_digest(directory),
        files=files,
    )


def _find(root: Path) -> Entry | None:
    """The entry, if every file is there with the size and time that the manifest states."""
    manifest = _Manifest.read(root)
    if manifest is None:
        return None
    directory = root / manifest.directory
    try:
        names = checkpoint_files(directory)
        stamps = {name: _Stamp.of(directory / name) for name in names}
    except OSError:
        return None
    if stamps != manifest.files:
        return None
    return Entry(directory, manifest.digest, has_tokenizer(names))


def _find_by_content(root: Path) -> Entry | None:
    """The entry, if only the times differ (a copied cache): hashing is cheaper than fetching."""
    manifest = _Manifest.read(root)
    if manifest is None:
        return None
    directory = root / manifest.directory
    try:
        sizes = {name: (directory / name).stat().st_size for name in checkpoint_files(directory)}
        if sizes != {name: stamp.size for name, stamp in manifest.files.items()}:
            return None
        if content_digest(directory) != manifest.digest:
            return None
        _describe_times(manifest, directory).write(root)
    except OSError:
        return None
    return _find(root)


def _describe_times(manifest: _Manifest, directory: Path) -> _Manifest:
    files = {name: _Stamp.of(directory / name) for name in manifest.files}
    return _Manifest(manifest.model, manifest.directory, manifest.digest, files)


def content_digest(directory: Path) -> str:
    """sha256 over the names and contents of a checkpoint's files, in the order of their names."""
    whole = hashlib.sha256()
    for name in checkpoint_files(directory):
        with (directory / name).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()
