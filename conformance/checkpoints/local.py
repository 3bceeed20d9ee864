"""A directory of checkpoint files: which files count, and whether they are whole.

Reads headers only and imports no tensor library.
"""

from __future__ import annotations

import fnmatch
import json
import os
import zipfile
from typing import TYPE_CHECKING, Any

from conformance.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CONFIG = "config.json"
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
)
_CODE = ("*.py",)
_REWRITE = "write the directory anew with save_pretrained, or copy it again"


def checkpoint_files(directory: Path) -> list[str]:
    """Names of the files that determine what a model computes: config, weights, tokenizer, code.

    Pickled weights count only where there are no safetensors, as in ``from_pretrained``.
    """
    names = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    weights = _SAFETENSORS if _matching(names, ("*.safetensors",)) else _PICKLED
    return _matching(names, (CONFIG, *weights, *_TOKENIZER, *_CODE))


def has_tokenizer(names: Iterable[str]) -> bool:
    """Whether some of these files describe a tokenizer."""
    return bool(_matching(names, tuple(p for p in _TOKENIZER if p != "*.jinja")))


def _matching(names: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def check(directory: Path, architecture: str) -> None:
    """Require a readable config of that architecture and whole weight files.

    Raises:
        CheckpointError: naming the file.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}",
            "source.path is taken from the folder of models.toml, and names a directory",
        )
    _check_config(directory / CONFIG, architecture)
    names = checkpoint_files(directory)
    weights = [name for name in names if name.endswith((".safetensors", ".bin"))]
    if not weights:
        raise CheckpointError(
            f"{directory}: no weights (model.safetensors or pytorch_model.bin)", _REWRITE
        )
    for name in weights:
        check_weights(directory / name)
    for name in _matching(names, ("*.index.json",)):
        shards = _json_object(directory / name).get("weight_map")
        listed = set(shards.values()) if isinstance(shards, dict) else set()
        if missing := sorted(str(shard) for shard in listed if shard not in weights):
            raise CheckpointError(
                f"{directory / name}: lists files that are missing: {', '.join(missing)}",
                "fetch the missing files; a download was cut short",
            )


def _check_config(file: Path, architecture: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing", _REWRITE)
    stated = _json_object(file).get("architectures") or []
    if stated and architecture not in stated:
        raise CheckpointError(
            f"{file}: architectures is {stated}, but models.toml says {architecture!r}",
            f'write architecture = "{stated[0]}" in models.toml, or name another checkpoint',
        )


def _json_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of UTF-8
        raise CheckpointError(f"{file}: not valid JSON: {error}", _REWRITE) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: not a JSON object", _REWRITE)
    return data


def check_weights(file: Path) -> None:
    """Compare a weight file's length with what its own table of contents promises.

    Raises:
        CheckpointError: truncated, or not such a file at all.
    """
    if file.suffix == ".safetensors":
        _check_safetensors(file)
        return
    with file.open("rb") as stream:
        begins_as_zip = stream.read(2) == b"PK"
    # A zip file's table is at its end. Pickles of before torch 1.6 have none: they are let pass.
    if file.stat().st_size == 0 or (begins_as_zip and not zipfile.is_zipfile(file)):
        raise CheckpointError(f"{file}: truncated ({file.stat().st_size} bytes)", _REWRITE)


def _check_safetensors(file: Path) -> None:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        ends = [
            entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
        ]
        promised = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a safetensors file: {error}", _REWRITE) from error
    if size != promised:
        word = "truncated" if size < promised else "has bytes after its end"
        raise CheckpointError(
            f"{file}: {word}: {size} bytes, its header promises {promised}", _REWRITE
        )
