"""Activation patching by hand: what patches of the reference do to its logits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from conformance.bounds import DIFFERENCE_STEP
from conformance.experiments.base import SHORT, Apparatus, Experiment
from conformance.experiments.rows import (
    apart,
    gaussian,
    project,
    prompt_of,
    repeated,
    run_rows,
    seeded,
)
from conformance.implementations.base import UNEDITABLE
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from conformance.experiments.base import Scope
    from conformance.experiments.rows import Row, RowEdit
    from conformance.families import Dims, Family
    from conformance.implementations.base import Implementation
    from conformance.implementations.huggingface import HuggingFaceModel
    from conformance.prompts import Prompt

#: How many patches are made of a sweep, for a twin and for a large model: the library makes a
#: forward pass for each. How it counts layers, positions and heads, its stacks show without any.
SAMPLED, SAMPLED_LARGE = 3, 2

#: The library's helpers that stack sweeps -> the axes of the stack, and the sweeps in its order.
STACKS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "get_act_patch_block_every": (
        ("layer", "pos"),
        ("get_act_patch_resid_pre", "get_act_patch_attn_out", "get_act_patch_mlp_out"),
    )
} | {
    f"get_act_patch_attn_head_{how}_every": (
        axes,
        tuple(
            f"get_act_patch_attn_head_{kind}_{how}" for kind in ("out", "q", "k", "v", "pattern")
        ),
    )
    for how, axes in (("all_pos", ("layer", "head")), ("by_pos", ("layer", "pos", "head")))
}

#: Steps -> weight, of the central difference of fourth order.
STENCIL: Mapping[int, float] = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}


@dataclass(frozen=True)
class Sweep:
    """One of the library's sweeps.

    Attributes:
        kind: of the site that it patches.
        axes: what it iterates over, in its own order; ``layer`` first.
    """

    kind: str
    axes: tuple[str, ...]

    def counts(self, dims: Dims, layers: int) -> list[int]:
        """How far each axis goes."""
        heads = dims.n_kv_heads if self.kind in ("attn.k", "attn.v") else dims.n_heads
        far = {"layer": layers, "head": heads}
        return [far.get(axis, SHORT) for axis in self.axes]


def _sweeps() -> dict[str, Sweep]:
    found = {
        f"get_act_patch_{kind}": Sweep(kind, ("layer", "pos"))
        for kind in ("resid_pre", "resid_mid", "attn_out", "mlp_out")
    }
    for name, kind in (("out", "attn.z"), ("q", "attn.q"), ("k", "attn.k"), ("v", "attn.v")):
        stem = f"get_act_patch_attn_head_{name}"
        found[f"{stem}_all_pos"] = Sweep(kind, ("layer", "head"))
        found[f"{stem}_by_pos"] = Sweep(kind, ("layer", "pos", "head"))
    stem = "get_act_patch_attn_head_pattern"
    found[f"{stem}_all_pos"] = Sweep("attn.pattern", ("layer", "head"))
    found[f"{stem}_by_pos"] = Sweep("attn.pattern", ("layer", "head", "dest"))
    found[f"{stem}_dest_src_pos"] = Sweep("attn.pattern", ("layer", "head", "dest", "src"))
    return found


#: The library's sweeps, by name.
SWEEPS: Mapping[str, Sweep] = _sweeps()


def prompts(dims: Dims, scope: Scope) -> tuple[Prompt, Prompt]:
    """Clean and corrupted: one row of eight random tokens each."""
    import torch

    sixteen = prompt_of(dims, scope).tokens
    n = min(SHORT, sixteen.shape[1])
    lowest = min(4, dims.n_ids - 1)
    other = torch.randint(lowest, dims.n_ids, (1, n), generator=seeded("corrupted"))
    clean = replace(prompt_of(dims, scope), name="clean", tokens=sixteen[:, :n])
    return clean, replace(clean, name="corrupted", tokens=other)


def indices(name: str, dims: Dims, scope: Scope) -> list[tuple[int, ...]]:
    """Which patches of a sweep are made: every layer once before any twice."""
    import torch

    sweep = SWEEPS[name]
    possible = list(
        itertools.product(scope.layers, *map(range, sweep.counts(dims, dims.n_layers)[1:]))
    )
    if sweep.axes[-2:] == ("dest", "src"):
        possible = [index for index in possible if index[-1] <= index[-2]]
    count = SAMPLED_LARGE if scope.large else SAMPLED
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
    own = [("head" if axis == "kv_head" else axis) for axis in parse(f"blocks.0.{kind}").axes[1:]]
    at: list[Any] = [slice(None)] * len(own)
    for axis, value in zip(axes, index, strict=True):
        at[own.index(names[axis])] = value

    def edit(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[tuple(at)] = clean[tuple(at)].to(value.dtype)
        return value

    return edit


def paths(dims: Dims, scope: Scope, fam: Family) -> dict[str, tuple[int, int]]:
    """q, k, v -> the layer and head whose output is patched on its way into each later head's.

    Shared keys and values belong to no single head: there, only queries.
    """
    if dims.n_layers < 2 or not fam.regular:
        return {}
    far = dims.n_layers - 2
    found = {"q": (far if scope.large else 0, 0)}
    if dims.group == 1:
        found |= {"k": (far, dims.n_heads - 1), "v": (far, dims.n_heads // 2)}
    return found


def later(dims: Dims, layer: int) -> list[tuple[int, int]]:
    """Layer and head of every head after a layer, in the library's order."""
    return list(itertools.product(range(layer + 1, dims.n_layers), range(dims.n_heads)))


def metric(projected: torch.Tensor) -> torch.Tensor:
    """A linear functional of the last position's logits, from their projection [..., pos, 16]."""
    return projected[..., -1, :] @ gaussian("metric", projected.shape[-1]).to(projected.dtype)


def middle_patches(sites: Mapping[str, torch.Tensor]) -> dict[str, Row]:
    """Site -> its value at one position in the middle (of the queries, of scores) patched.

    Args:
        sites: the clean run's values, without batch.
    """
    found: dict[str, Row] = {}
    for site, clean in sites.items():
        axes = parse(site).axes[1:]
        kind = parse(site).kind
        where = "dest" if "query" in axes else "pos"
        length = clean.shape[axes.index("query" if where == "dest" else "pos")]
        if parse(site).layer is not None:
            found[site] = {site: patch(kind, (where,), (length // 2,), clean)}
    return found


def values(model: Implementation, prompt: Prompt, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """Every site that can be edited of these layers, and those of none, without batch."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        site = parse(name)
        if site.kind not in UNEDITABLE and site.layer in (None, *layers):
            found[name] = value[0].clone()

    found["logits"] = model.run(prompt, keep)[0].clone()
    return found


def attribution(
    model: Implementation,
    corrupted: Prompt,
    differences: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Site -> gradient of the metric times clean minus corrupted, summed by position (or query).

    Args:
        differences: site -> clean minus corrupted, no batch.
    """
    import torch

    probes = {s: torch.zeros_like(d)[None].requires_grad_() for s, d in differences.items()}
    edits = {site: (lambda value, p=probe: value + p) for site, probe in probes.items()}
    logits = model.run(corrupted, lambda *_: None, edits=edits, grad=True)
    gradients = torch.autograd.grad(
        metric(project(logits))[0], list(probes.values()), allow_unused=True
    )
    found = {}
    for (site, difference), gradient in zip(differences.items(), gradients, strict=True):
        axes = parse(site).axes[1:]
        kept = axes.index("query" if "query" in axes else "pos")
        others = [axis for axis in range(len(axes)) if axis != kept]
        product = torch.zeros_like(difference) if gradient is None else gradient[0] * difference
        found[site] = product.sum(others).detach()
    return found


class Patching(Experiment):
    """Runs of the corrupted prompt with values of the clean one.

    Results, logits always projected: ``clean`` and ``corrupted`` [pos, 16]; ``at/{site}``, one
    position patched [pos, 16]; ``whole/{site}``, z or attn_out patched at every position;
    each sweep [patches, 16] at the last position; ``path/{q, k or v}`` [later heads, 16] likewise;
    ``attribution/{site}`` [pos]; and
    ``slope/{site}`` [1], the metric's central difference along clean minus corrupted (of a large
    model, in its middle layer).
    """

    uses: ClassVar[tuple[str, ...]] = ("conformance.experiments.rows", "conformance.bounds")

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        model, scope = on.model, on.scope
        prompt, corrupted = prompts(model.dims, scope)
        clean = values(model, prompt, scope.layers)
        other = values(model, corrupted, scope.layers)
        yield "clean", project(clean.pop("logits")[None])[0]
        yield "corrupted", project(other.pop("logits")[None])[0]
        named: dict[str, Row] = {f"at/{s}": row for s, row in middle_patches(clean).items()}
        for site in clean:
            if parse(site).kind in ("attn.z", "attn_out"):
                named[f"whole/{site}"] = whole(site, clean[site])
        differences = tangents(clean, other)
        sloped = [s for s in differences if not scope.large or parse(s).layer == scope.layers[1]]
        for site in sloped:
            for steps in STENCIL:
                by = steps * DIFFERENCE_STEP * differences[site]
                named[f"{steps}/{site}"] = {site: shifted(by)}
        swept = {}
        for name, sweep in SWEEPS.items():
            if model.family.everywhere(sweep.kind) and sweep.kind not in UNEDITABLE:
                swept[name] = indices(name, model.dims, scope)
                named |= {f"{name}/{i}": row for i, row in self._rows(name, swept[name], clean)}
        names = list(named)
        results = {names[i]: v for i, v in run_rows(model, corrupted, list(named.values()))}
        for name, value in results.items():
            if name.startswith(("at/", "whole/")):
                yield name, value
        for name, made in swept.items():
            yield name, torch.stack([results[f"{name}/{i}"][-1] for i in range(len(made))])
        for kind, (layer, head) in paths(model.dims, scope, model.family).items():
            yield f"path/{kind}", self._path(model, prompt, corrupted, kind, layer, head)
        for site, value in attribution(model, corrupted, differences).items():
            yield f"attribution/{site}", value
            if site in sloped:
                parts = [w * metric(results[f"{n}/{site}"]) for n, w in STENCIL.items()]
                yield f"slope/{site}", torch.stack(parts).sum().reshape(1) / DIFFERENCE_STEP

    def _rows(
        self, name: str, made: Sequence[tuple[int, ...]], clean: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[int, Row]]:
        sweep = SWEEPS[name]
        for i, (layer, *index) in enumerate(made):
            site = f"blocks.{layer}.{sweep.kind}"
            yield i, {site: patch(sweep.kind, sweep.axes[1:], index, clean[site])}

    def _path(
        self,
        model: HuggingFaceModel,
        clean: Prompt,
        corrupted: Prompt,
        kind: str,
        layer: int,
        head: int,
    ) -> torch.Tensor:
        """A head's output of the clean run in what one later head alone reads, q, k or v.

        First what each later layer would read with the head's change in its input; then each of
        its heads given that, and nothing else.

        Returns:
            [later heads, 16]: logits of the last position, projected.
        """
        import torch

        z, out = f"blocks.{layer}.attn.z", f"blocks.{layer}.attn_out"
        theirs = values(model, clean, (layer,))[z]
        written: list[torch.Tensor] = []
        for row in ({}, {z: patch("attn.z", ("head",), (head,), theirs)}):

            def keep_written(name: str, value: torch.Tensor) -> None:
                if name == out:
                    written.append(value[0].clone())

            model.run(corrupted, keep_written, edits=apart([row]))
        change = written[1] - written[0]
        layers = range(layer + 1, model.dims.n_layers)
        reads = {f"blocks.{n}.attn.{kind}": row for row, n in enumerate(layers)}
        read: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            if name in reads:
                read[name] = value[reads[name]].clone()

        inputs: list[Row] = [{f"blocks.{n}.resid_pre": shifted(change)} for n in layers]
        model.run(repeated(corrupted, len(inputs)), keep, edits=apart(inputs))
        rows: list[Row] = [
            {site: patch(f"attn.{kind}", ("head",), (h,), read[site])}
            for n, h in later(model.dims, layer)
            for site in [f"blocks.{n}.attn.{kind}"]
        ]
        return torch.stack([value[-1] for _, value in run_rows(model, corrupted, rows)])


def whole(site: str, clean: torch.Tensor) -> Row:
    """A site patched at every position."""
    return {site: lambda value: clean.to(value.dtype)}


def shifted(by: torch.Tensor) -> RowEdit:
    """Add this to a site's value."""
    return lambda value: value + by.to(value.dtype)


def tangents(
    clean: Mapping[str, torch.Tensor], corrupted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Clean minus corrupted; masked scores, whose difference is no number, do not move."""
    return {
        site: (value - corrupted[site]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        for site, value in clean.items()
        if site in corrupted
    }


EXPERIMENT = Patching()
