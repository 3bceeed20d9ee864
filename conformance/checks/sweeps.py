"""The library's own sweeps of activation patching, against the same patches of the reference."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

from conformance.checks.base import Check, identical, same, structure
from conformance.experiments.patching import SWEEPS, indices, metric
from conformance.experiments.rows import project

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from conformance.experiments.base import Scope
    from conformance.experiments.store import Stored
    from conformance.implementations.subjects import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison


def swept(
    check: Check,
    name: str,
    subject: LensModel,
    stored: Stored,
    scope: Scope,
    corrupted: Prompt,
    cache: Any,
) -> Iterator[Comparison]:
    """One of :data:`SWEEPS`, made by the library: what it measured, and what it returned.

    Args:
        cache: the library's own, of the clean run.
    """
    import torch
    from transformer_lens import patching

    made, full = indices(name, subject.dims, scope)
    seen: list[torch.Tensor] = []

    def measure(logits: torch.Tensor) -> torch.Tensor:
        seen.append(project(logits.detach())[0])
        return metric(seen[-1])

    sweep = getattr(patching, name)
    more: dict[str, Any] = {}
    if not full:
        counts = SWEEPS[name].counts(subject.dims, subject.dims.n_layers)
        every = patching.make_df_from_ranges(counts, sweep.keywords["index_axis_names"])
        table = every.iloc[[_flat(index, counts) for index in made]]
        more = {"index_axis_names": None, "index_df": table}
    site, on = f"blocks.0.{SWEEPS[name].kind}", f"corrupted ({name})"
    result = None
    with subject.session(), check.port(name, site), _quiet():
        result = sweep(subject.model, corrupted.tokens, cache, measure, **more)
    if result is None:
        return
    if len(seen) != len(made):
        yield structure(site, f"{name} made {len(seen)} patches, not {len(made)}", on)
        return
    truth, value = stored[name], torch.stack([s[-1] for s in seen])
    for layer in sorted({index[0] for index in made}):
        rows = [i for i, index in enumerate(made) if index[0] == layer]
        at = f"blocks.{layer}.{SWEEPS[name].kind}"
        yield same(truth[rows], value[rows], stored.spread(name), site=at, on=on)
    returned = torch.stack([metric(s) for s in seen])
    if full:
        returned = returned.reshape([1 + max(column) for column in zip(*made, strict=True)])
    note = "what the sweep returns"
    yield identical(returned, result.to(returned.dtype), site=site, on=on, note=note)


def _flat(index: tuple[int, ...], counts: list[int]) -> int:
    """Where a tuple of indices is among all, the last axis the fastest."""
    at = 0
    for value, count in zip(index, counts, strict=True):
        at = at * count + value
    return at


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
