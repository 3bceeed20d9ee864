"""Writes ``records.jsonl`` as a run goes: a verdict is on disk as soon as it is known."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, TextIO

from conformance import SEEDS, __version__
from conformance.errors import RecordsError
from conformance.records import Footer, Header, Verdict, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conformance.records import Name, Stale
    from conformance.spec import Spec

FILE_NAME = "records.jsonl"
#: The folder beside it, with a sample of each port's activations.
SAMPLES = "samples"
_PACKAGES = ("torch", "transformers", "transformer-lens", "numpy", "safetensors", "pytest")


class Recorder:
    """One run's records file. An older run's file is renamed after its start, never lost.

    Args:
        directory: created where it is missing.
        spec: the ``models.toml`` of the run.
        selected: how many verdicts the run is asked for.
        command: the command line.
        names: the names whose verdicts are among those.
        dtype: the one that every model is run in; None where each is in its own.

    Raises:
        RecordsError: the directory cannot be written to.
    """

    def __init__(
        self,
        directory: Path,
        spec: Spec,
        selected: int,
        command: Sequence[str] = (),
        names: Sequence[Name] = (),
        *,
        dtype: str | None = None,
    ) -> None:
        self.path = directory / FILE_NAME
        self.outcomes: Counter[str] = Counter()
        self._selected = selected
        self._seen: set[tuple[str, str, str]] = set()
        self._began = time.monotonic()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            set_aside(self.path)
            # A lone surrogate, as in the name of a file, becomes the JSON escape it needs.
            self._stream: TextIO = self.path.open(
                "x", encoding="utf-8", errors="backslashreplace", newline="\n"
            )
        except OSError as error:
            raise RecordsError(
                f"{self.path}: {error.strerror}", "give a directory you can write to with --out"
            ) from error
        write(header(spec, command, dtype), self._stream)
        for name in names:
            write(name, self._stream)

    def add(self, verdict: Verdict) -> None:
        """Append a verdict; a second one of the same case (an item run again) is dropped."""
        key = (verdict.model, verdict.subject, verdict.check)
        if key in self._seen:
            return
        self._seen.add(key)
        self.outcomes[verdict.outcome] += 1
        write(keep_sample(verdict, self.path.parent), self._stream)

    def finish(self, exit_code: int, stale: Sequence[Stale] = ()) -> None:
        """Append the footer; ``stale`` is what the run found stale in the ledger."""
        footer = Footer(
            finished=now(),
            exit_code=exit_code,
            duration_s=round(time.monotonic() - self._began, 3),
            outcomes=dict(sorted(self.outcomes.items())),
            selected=self._selected,
            stale=tuple(stale),
        )
        write(footer, self._stream)
        self._stream.close()


def keep_sample(verdict: Verdict, folder: Path) -> Verdict:
    """Write a verdict's sample of activations, if it has one, to a file of its own.

    Returns:
        The verdict, naming the file instead.

    Raises:
        RecordsError: the file cannot be written.
    """
    sample = verdict.metrics.get("sample")
    if sample is None:
        return verdict
    whose = {"model": verdict.model, "subject": verdict.subject}
    line = json.dumps({**whose, **sample}, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate, as in half a character, becomes the JSON escape it needs.
    text = line.encode("utf-8", "backslashreplace")
    name = f"{SAMPLES}/{file_name(f'{verdict.model}--{verdict.subject}')}.json"
    path = folder / name
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror}", "make room, or choose --out") from error
    digest = hashlib.sha256(text).hexdigest()
    metrics = {**verdict.metrics, "sample": {"file": name, "sha256": digest}}
    return replace(verdict, metrics=metrics)


def versions() -> dict[str, str]:
    """Versions of what decides a verdict; read from metadata, so nothing is imported."""
    found = {"python": platform.python_version(), "lens-conformance": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def header(spec: Spec, command: Sequence[str], dtype: str | None = None) -> Header:
    """What a file of results begins with."""
    return Header(
        started=now(),
        versions=versions(),
        platform=f"{platform.platform()}, {platform.machine()}, {sys.implementation.name}",
        seeds=dict(SEEDS),
        models_toml=str(spec.path),
        models_toml_sha256=spec.sha256,
        ledger_sha256=spec.ledger.sha256 if spec.ledger else None,
        command=tuple(command),
        dtype=dtype,
    )


def file_name(text: str) -> str:
    """A name for a file of any system; another one for another text."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if plain == text and plain.strip("."):  # "." and ".." are folders
        return plain
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def set_aside(path: Path) -> None:
    """Rename an earlier run's file to ``records.<start>.jsonl``."""
    if not path.exists():
        return
    stamp = _started(path)
    target = path.with_name(f"{path.stem}.{stamp}{path.suffix}")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.stem}.{stamp}-{count}{path.suffix}")
    path.rename(target)


def _started(path: Path) -> str:
    """When a run began, as it stands in a file name; damaged files go by their last change."""
    try:
        with path.open(encoding="utf-8") as stream:
            started = datetime.fromisoformat(json.loads(stream.readline())["started"])
    except (ValueError, KeyError, TypeError):
        started = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return started.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
