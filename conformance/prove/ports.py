"""Proves that the checks can fail: fault x twin x check, judged by the checks themselves."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from conformance.errors import ConformanceError
from conformance.prove.bench import PROMPTS, Bench, Progress
from conformance.prove.proof import FILE_NAME, GATES, Proof

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from conformance.faults import Fault
    from conformance.spec import ModelSpec

__all__ = ["FILE_NAME", "GATES", "PROMPTS", "Bench", "Proof", "catalogue", "prove", "seeded"]


def prove(
    model: ModelSpec,
    subject: str,
    faults: Sequence[Fault],
    cache: Path,
    progress: Progress = lambda _: None,
    *,
    loader: str | None = None,
) -> Iterator[Proof]:
    """All faults that apply to one port of one twin, the unfaulted port first.

    Raises:
        ConformanceError: the reference or the port could not be run at all.
    """
    bench = Bench.load(model, subject, cache, progress, loader=loader)
    yield bench.unfaulted()
    if bench.wrong:
        return
    for fault in faults:
        try:
            if not bench.provable(fault):
                continue
            progress(f"{model.id} {subject}: {fault.name}")
            yield bench.prove(fault)
        except Exception as error:
            yield bench.broken(fault, error)


def seeded(
    model: ModelSpec,
    subject: str,
    seed: int,
    cache: Path,
    progress: Progress = lambda _: None,
    *,
    loader: str | None = None,
) -> Proof:
    """The unfaulted port of a twin drawn from another seed, judged on every prompt.

    Raises:
        ConformanceError: as :func:`prove`.
    """
    from conformance.spec import TwinSource

    assert isinstance(model.source, TwinSource)
    other = model.model_copy(
        update={
            "id": f"{model.id}-seed{seed}",
            "source": model.source.model_copy(update={"seed": seed}),
        }
    )
    bench = Bench.load(other, subject, cache, progress, loader=loader, prompts=(), invariants=True)
    return dataclasses.replace(bench.unfaulted(), model=model.id)


def catalogue(names: Sequence[str] = ()) -> list[Fault]:
    """The faults to prove.

    Raises:
        ConformanceError: a name is in no catalogue.
    """
    import difflib

    from conformance.faults import CATALOGUE

    for name in names:
        if name not in CATALOGUE:
            near = difflib.get_close_matches(name, CATALOGUE, n=3)
            raise ConformanceError(
                f"no fault named {name!r}",
                f"did you mean {', '.join(near)}?" if near else "see conformance/faults",
            )
    return [CATALOGUE[name] for name in names] if names else list(CATALOGUE.values())
