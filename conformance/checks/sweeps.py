"""The library's own sweeps of activation patching, against the same patches of the reference."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

from conformance.checks.base import Check, identical, same, structure
from conformance.experiments.patching import SWEEPS, indices, later, metric
from conformance.experiments.rows import project

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from conformance.experiments.base import Scope
    from conformance.experiments.store import Stored
    from conformance.implementations.lens_model import LensModel
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

    made = indices(name, subject.dims, scope)
    seen: list[torch.Tensor] = []

    def measure(logits: torch.Tensor) -> torch.Tensor:
        seen.append(project(logits.detach())[0])
        return metric(seen[-1])

    sweep = getattr(patching, name)
    counts = SWEEPS[name].counts(subject.dims, subject.dims.n_layers)
    every = patching.make_df_from_ranges(counts, sweep.keywords["index_axis_names"])
    table = every.iloc[[_flat(index, counts) for index in made]]
    more = {"index_axis_names": None, "index_df": table}
    site, on = f"blocks.0.{SWEEPS[name].kind}", f"corrupted ({name})"
    result = None
    with subject.session(), check.port(name, site), quiet():
        result = sweep(subject.model, corrupted.tokens, cache, measure, **more)
    if result is None:
        return
    if len(seen) != len(made):
        yield structure(site, f"{name} made {len(seen)} patches, not {len(made)}", on)
        return
    yield from _by_layer(stored, name, seen, [index[0] for index in made], SWEEPS[name].kind, on)
    returned = torch.stack([metric(s) for s in seen])
    note = "what the sweep returns"
    yield identical(returned, result.to(returned.dtype), site=site, on=on, note=note)


def along_paths(
    check: Check,
    kind: str,
    source: tuple[int, int],
    subject: LensModel,
    stored: Stored,
    corrupted: Prompt,
    caches: tuple[Any, Any],
) -> Iterator[Comparison]:
    """``get_act_patch_direct_path``: one head's output in what each later head alone reads.

    Args:
        kind: of what is read: q, k or v.
        source: the layer and head whose output it is.
        caches: the library's own, of the clean and of the corrupted run.
    """
    import torch
    from transformer_lens import patching

    layer, head = source
    name = "get_act_patch_direct_path"
    first, on = f"blocks.{layer + 1}.attn.{kind}", f"corrupted ({name} into {kind})"
    seen: list[torch.Tensor] = []

    def measure(logits: torch.Tensor) -> torch.Tensor:
        seen.append(project(logits.detach())[0])
        return metric(seen[-1])

    result = None
    with subject.session(), check.port(f"{name} into {kind}", first):
        try:
            result = getattr(patching, name)(
                subject.model, corrupted.tokens, *caches, measure, layer, head, kind, verbose=False
            )
        except (ValueError, NotImplementedError) as refusal:
            # What the library documents: no fork of the inputs, no single head's own write.
            check.not_applicable(f"{name} into {kind}", str(refusal))
            return
    if result is None:
        return
    due = later(subject.dims, layer)
    if len(seen) != len(due):
        yield structure(first, f"{name} made {len(seen)} patches, not {len(due)}", on)
        return
    yield from _by_layer(stored, f"path/{kind}", seen, [n for n, _ in due], f"attn.{kind}", on)
    places = torch.zeros(subject.dims.n_layers, subject.dims.n_heads, dtype=result.dtype)
    for place, projected in zip(due, seen, strict=True):
        places[place] = metric(projected)
    yield identical(places, result, site=first, on=on, note="what it returns")


def _by_layer(
    stored: Stored,
    key: str,
    seen: Sequence[torch.Tensor],
    layers: Sequence[int],
    kind: str,
    on: str,
) -> Iterator[Comparison]:
    """What patches did to the last position, against the reference, a comparison for each layer.

    Args:
        seen: projected logits [pos, 16] of each patch.
        layers: the layer of each.
    """
    import torch

    truth, value, spread = stored[key], torch.stack([s[-1] for s in seen]), stored.spread(key)
    for layer in sorted(set(layers)):
        rows = [i for i, own in enumerate(layers) if own == layer]
        yield same(truth[rows], value[rows], spread, site=f"blocks.{layer}.{kind}", on=on)


def _flat(index: tuple[int, ...], counts: list[int]) -> int:
    """Where a tuple of indices is among all, the last axis the fastest."""
    at = 0
    for value, count in zip(index, counts, strict=True):
        at = at * count + value
    return at


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
