"""Activation patching by hand: what patches of the reference do to its logits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from conformance.bounds import DIFFERENCE_STEP
from conformance.experiments.base import SHORT, Apparatus, Experiment
from conformance.experiments.patches import (
    Path,
    Sweep,
    along,
    head_sweeps,
    patch,
    sampled,
    shifted,
    whole,
)
from conformance.experiments.rows import gaussian, project, prompt_of, run_rows, seeded
from conformance.experiments.two_stacks import crossing_paths, half, made, row_of, site_of
from conformance.implementations.base import UNEDITABLE
from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from conformance.experiments.base import Scope
    from conformance.experiments.rows import Row
    from conformance.families import Dims, Family
    from conformance.implementations.base import Implementation
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

#: What is patched at every position in one go: all heads of an attention, and its output.
WHOLE = ("attn.z", "attn_out", "cross_attn.z", "cross_attn_out")

#: Steps -> weight, of the central difference of fourth order.
STENCIL: Mapping[int, float] = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}


def _sweeps() -> dict[str, Sweep]:
    found = {
        f"get_act_patch_{kind}": Sweep(kind, ("layer", "pos"))
        for kind in ("resid_pre", "resid_mid", "attn_out", "mlp_out")
    }
    stem = "get_act_patch_attn_head_"
    return found | {stem + name: sweep for name, sweep in head_sweeps("attn").items()}


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
    """Which patches of a sweep of the library are made: every layer once before any twice."""
    count = SAMPLED_LARGE if scope.large else SAMPLED
    return sampled(name, SWEEPS[name], dims, scope.layers, count)


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


def routes(dims: Dims, scope: Scope, fam: Family) -> dict[str, Path]:
    """:func:`paths`, or those of an encoder and a decoder, with the sites that they lead to."""
    if fam.encoder:
        return crossing_paths(dims, scope, fam)
    return {
        kind: Path(layer, head, {f"blocks.{n}.attn.{kind}": f"blocks.{n}.resid_pre" for n in after})
        for kind, (layer, head) in paths(dims, scope, fam).items()
        for after in [range(layer + 1, dims.n_layers)]
    }


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
        if parse(site).layer is not None or kind == "ln_encoder":
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
    """Site -> gradient of the metric times clean minus corrupted, [pos (or query), all else].

    Its sum over a position is what people plot. The terms are what is compared: they cancel, and a
    sum's error is that of its terms (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
    ed., section 4.2), of which one random draw says little where a sum is all there is.

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
        product = torch.zeros_like(difference) if gradient is None else gradient[0] * difference
        found[site] = product.detach().movedim(kept, 0).flatten(1)
    return found


class Patching(Experiment):
    """Runs of the corrupted prompt with values of the clean one.

    Results, logits always projected: ``clean`` and ``corrupted`` [pos, 16]; ``at/{site}``, one
    position patched [pos, 16]; ``whole/{site}``, z or attn_out patched at every position;
    each sweep [patches, 16] at the last position; ``path/{q, k or v}`` [later heads, 16] likewise;
    ``attribution/{site}`` [pos * all else]; and
    ``slope/{site}`` [1], the metric's central difference along clean minus corrupted (of a large
    model, in its middle layer).

    An encoder and a decoder have no sweeps, but ``half`` [pos, 16], the clean source with the
    corrupted target; ``hand/{name}`` [patches, pos, 16]; and their paths.
    """

    uses: ClassVar[tuple[str, ...]] = (
        "conformance.experiments.rows",
        "conformance.experiments.patches",
        "conformance.experiments.two_stacks",
        "conformance.bounds",
    )

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
            if parse(site).kind in WHOLE:
                named[f"whole/{site}"] = whole(site, clean[site])
        differences = tangents(clean, other)
        sloped = [s for s in differences if not scope.large or parse(s).layer == scope.layers[1]]
        for site in sloped:
            for steps in STENCIL:
                by = steps * DIFFERENCE_STEP * differences[site]
                named[f"{steps}/{site}"] = {site: shifted(by)}
        swept = self._rows(on, clean)
        for name, rows in swept.items():
            named |= {f"{name}/{i}": row for i, row in enumerate(rows)}
        names = list(named)
        results = {names[i]: v for i, v in run_rows(model, corrupted, list(named.values()))}
        for name, value in results.items():
            if name.startswith(("at/", "whole/")):
                yield name, value
        for name, rows in swept.items():
            found = torch.stack([results[f"{name}/{i}"] for i in range(len(rows))])
            yield name, found if model.family.encoder else found[:, -1]
        for kind, path in routes(model.dims, scope, model.family).items():
            z = values(model, prompt, (path.layer,))[f"blocks.{path.layer}.attn.z"]
            yield f"path/{kind}", along(model, path, z, corrupted)[:, -1]
        if model.family.encoder:
            source = half(prompt, corrupted, model.model.config)
            yield "half", project(model.run(source, lambda *_: None))[0]
        for site, value in attribution(model, corrupted, differences).items():
            yield f"attribution/{site}", value.flatten()
            if site in sloped:
                parts = [w * metric(results[f"{n}/{site}"]) for n, w in STENCIL.items()]
                yield f"slope/{site}", torch.stack(parts).sum().reshape(1) / DIFFERENCE_STEP

    def _rows(self, on: Apparatus, clean: Mapping[str, torch.Tensor]) -> dict[str, list[Row]]:
        """Sweep -> its patches."""
        fam, dims = on.model.family, on.model.dims
        if fam.encoder:
            return {
                f"hand/{name}": [
                    row_of(name, index, clean[site_of(name, index)]) for index in chosen
                ]
                for name, chosen in made(dims, on.scope, fam).items()
            }
        found: dict[str, list[Row]] = {}
        for name, sweep in SWEEPS.items():
            if fam.everywhere(sweep.kind) and sweep.kind not in UNEDITABLE:
                found[name] = [
                    {site: patch(sweep.kind, sweep.axes[1:], index, clean[site])}
                    for layer, *index in indices(name, dims, on.scope)
                    for site in [f"blocks.{layer}.{sweep.kind}"]
                ]
        return found


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
