"""Patches: which parts of a site's value are replaced, and what a head writes on its way."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.experiments.base import SHORT
from conformance.experiments.rows import apart, repeated, run_rows, seeded
from conformance.sites import KINDS, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from conformance.experiments.rows import Row, RowEdit
    from conformance.families import Dims
    from conformance.implementations.base import Implementation
    from conformance.prompts import Prompt


@dataclass(frozen=True)
class Sweep:
    """Patches of one kind of site, one for each index.

    Attributes:
        kind: of the site that it patches.
        axes: what it iterates over, in its own order; ``layer`` first.
    """

    kind: str
    axes: tuple[str, ...]

    def counts(self, dims: Dims, layers: int) -> list[int]:
        """How far each axis goes."""
        heads = dims.n_kv_heads if self.kind.endswith(("attn.k", "attn.v")) else dims.n_heads
        far = {"layer": layers, "head": heads}
        return [far.get(axis, SHORT) for axis in self.axes]


def head_sweeps(attn: str) -> dict[str, Sweep]:
    """Sweeps over an attention's heads, by the ends of the names of the library's own.

    Args:
        attn: the part of a block, ``attn`` or ``cross_attn``.
    """
    found = {}
    for name, kind in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v")):
        found[f"{name}_all_pos"] = Sweep(f"{attn}.{kind}", ("layer", "head"))
        found[f"{name}_by_pos"] = Sweep(f"{attn}.{kind}", ("layer", "pos", "head"))
    pattern = f"{attn}.pattern"
    found["pattern_all_pos"] = Sweep(pattern, ("layer", "head"))
    found["pattern_by_pos"] = Sweep(pattern, ("layer", "head", "dest"))
    found["pattern_dest_src_pos"] = Sweep(pattern, ("layer", "head", "dest", "src"))
    return found


def sampled(
    name: str, sweep: Sweep, dims: Dims, layers: Sequence[int], count: int
) -> list[tuple[int, ...]]:
    """Some patches of a sweep: every layer once before any twice.

    Args:
        name: what the choice is seeded with.
        layers: those that have its kind of site.
        count: how many.
    """
    import torch

    possible = list(itertools.product(layers, *map(range, sweep.counts(dims, dims.n_layers)[1:])))
    if sweep.kind == "attn.pattern" and sweep.axes[-2:] == ("dest", "src"):
        possible = [index for index in possible if index[-1] <= index[-2]]
    seen: dict[int, int] = {}
    ranked: list[tuple[int, tuple[int, ...]]] = []
    for at in torch.randperm(len(possible), generator=seeded(name)).tolist():
        layer = possible[at][0]
        seen[layer] = seen.get(layer, 0) + 1
        ranked.append((seen[layer], possible[at]))
    ranked.sort(key=lambda entry: entry[0])
    return sorted(index for _, index in ranked[:count])


def patch(kind: str, axes: Sequence[str], index: Sequence[int], clean: torch.Tensor) -> RowEdit:
    """Put the clean run's value where ``index`` points, along ``axes`` (no layer among them).

    Args:
        clean: the site's value in the clean run, no batch.
    """
    names = {"pos": "pos", "dest": "query", "src": "key", "head": "head"}
    own = [("head" if axis == "kv_head" else axis) for axis in KINDS[kind].axes[1:]]
    at: list[Any] = [slice(None)] * len(own)
    for axis, value in zip(axes, index, strict=True):
        at[own.index(names[axis])] = value

    def edit(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[tuple(at)] = clean[tuple(at)].to(value.dtype)
        return value

    return edit


def whole(site: str, clean: torch.Tensor) -> Row:
    """A site patched at every position."""
    return {site: lambda value: clean.to(value.dtype)}


def shifted(by: torch.Tensor) -> RowEdit:
    """Add this to a site's value."""
    return lambda value: value + by.to(value.dtype)


@dataclass(frozen=True)
class Path:
    """A head's output on its way into what one later head alone reads.

    Attributes:
        layer, head: whose output it is.
        reads: sites that read it, a kind of query, key or value in each later layer -> the site
            of the stream through which it comes.
    """

    layer: int
    head: int
    reads: Mapping[str, str]

    def into(self, dims: Dims) -> list[tuple[str, int]]:
        """Site and head of every head that reads, in the library's order."""
        return list(itertools.product(self.reads, range(dims.n_heads)))


def along(
    model: Implementation, path: Path, theirs: torch.Tensor, corrupted: Prompt
) -> torch.Tensor:
    """A head's output of the clean run in what one later head alone reads.

    First what each later layer would read with the head's change in its input; then each of
    its heads given that, and nothing else.

    Args:
        theirs: ``attn.z`` of the path's layer in the clean run, without batch.

    Returns:
        [later heads, pos, 16]: logits, projected.
    """
    import torch

    z, out = f"blocks.{path.layer}.attn.z", f"blocks.{path.layer}.attn_out"
    written: list[torch.Tensor] = []
    for row in ({}, {z: patch("attn.z", ("head",), (path.head,), theirs)}):

        def keep_written(name: str, value: torch.Tensor) -> None:
            if name == out:
                written.append(value[0].clone())

        model.run(corrupted, keep_written, edits=apart([row]))
    change = written[1] - written[0]
    places = {site: row for row, site in enumerate(path.reads)}
    read: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        if name in places:
            read[name] = value[places[name]].clone()

    inputs: list[Row] = [{through: shifted(change)} for through in path.reads.values()]
    model.run(repeated(corrupted, len(inputs)), keep, edits=apart(inputs))
    rows: list[Row] = [
        {site: patch(parse(site).kind, ("head",), (head,), read[site])}
        for site, head in path.into(model.dims)
    ]
    return torch.stack([value for _, value in run_rows(model, corrupted, rows)])
