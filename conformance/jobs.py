"""What is asked of a child process: plain, picklable, importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from conformance.spec import ModelSpec

#: A child's message to its parent: ``{"event": "progress", "text": ...}`` or
#: ``{"event": "verdict", "record": {...}}``.
Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Limit:
    """What there is for a run: ``where`` says of what, for a reader.

    Attributes:
        cpu: bytes of RAM; 0 for none.
        gpus: bytes of each GPU.
        anywhere: a GPU alone will do. Runs themselves take place in RAM.
    """

    where: str
    cpu: int
    gpus: tuple[int, ...] = ()
    anywhere: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of isolated work.

    Attributes:
        kind: ``checkpoint`` fetches or builds the files, ``reference`` runs HuggingFace and
            stores its trace, ``subject`` runs a port against the stored trace.
        model: the entry of ``models.toml``.
        cache: the cache directory (checkpoints and reference traces).
        subject: the subject's name; None unless ``kind`` is ``subject``.
        loader: ``package.module:function`` of a subject that the user declared.
        checks: which checks a subject job runs, or a reference job computes things for.
        limit: the memories that a run must fit in; a reference job looks first.
    """

    kind: Literal["checkpoint", "reference", "subject"]
    model: ModelSpec
    cache: str
    subject: str | None = None
    loader: str | None = None
    checks: tuple[str, ...] = ()
    limit: Limit | None = None
