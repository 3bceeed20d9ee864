"""Patching an encoder and a decoder: what the library's sweeps would do, made by hand.

The decoder has tokens of its own, which differ between the clean and the corrupted run as the
encoder's do. A third run is clean in its source alone: what the encoder is given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conformance.experiments.patches import Path, Sweep, head_sweeps, patch, sampled
from conformance.implementations.base import one_back

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from conformance.experiments.base import Scope
    from conformance.experiments.rows import Row
    from conformance.families import Dims, Family
    from conformance.prompts import Prompt

_STREAM = ("resid_pre", "resid_mid", "attn_out", "cross_attn_out", "resid_cross", "mlp_out")

#: Patches by hand, by name: those of the library's sweeps, and of the attention to the encoder.
BY_HAND: Mapping[str, Sweep] = {
    **{kind: Sweep(kind, ("layer", "pos")) for kind in _STREAM},
    **{f"head_{name}": sweep for name, sweep in head_sweeps("attn").items()},
    **{f"cross_head_{name}": sweep for name, sweep in head_sweeps("cross_attn").items()},
}


def half(clean: Prompt, corrupted: Prompt, config: Any) -> Prompt:
    """The clean run's tokens for the encoder, the corrupted run's for the decoder.

    Args:
        config: the whole model's, of HuggingFace.
    """
    return replace(clean, name="half", decoder=one_back(corrupted.tokens, config))


def made(dims: Dims, scope: Scope, fam: Family) -> dict[str, list[tuple[int, ...]]]:
    """Which patches of each of :data:`BY_HAND` are made: two in each layer, of a large model one.

    Layers that do not have its kind of site are left out; so is a sweep of which none is left.
    """
    found = {}
    for name, sweep in BY_HAND.items():
        layers = [i for i in scope.layers if sweep.kind not in fam.absent(i)]
        if layers:
            count = len(layers) * (1 if scope.large else 2)
            found[name] = sampled(name, sweep, dims, layers, count)
    return found


def site_of(name: str, index: tuple[int, ...]) -> str:
    """The site that a patch of :data:`BY_HAND` changes."""
    return f"blocks.{index[0]}.{BY_HAND[name].kind}"


def row_of(name: str, index: tuple[int, ...], clean: torch.Tensor) -> Row:
    """One patch of :data:`BY_HAND`.

    Args:
        clean: its site's value in the clean run, no batch.
    """
    sweep = BY_HAND[name]
    return {site_of(name, index): patch(sweep.kind, sweep.axes[1:], index[1:], clean)}


def crossing_paths(dims: Dims, scope: Scope, fam: Family) -> dict[str, Path]:
    """Ways of a head's output into later heads of its own stack, and into the decoder's attention
    to the encoder.

    None where norms of the stream come after attention: what a head writes goes through one
    before a later head reads it. Shared keys and values belong to no single head.
    """
    if fam.post_norm:
        return {}
    found = {}
    stacks = {"encoder": range(fam.encoder), "decoder": range(fam.encoder, dims.n_layers)}
    for stack, layers in stacks.items():
        first = layers[-2] if scope.large and len(layers) > 1 else layers[0]
        for kind in "qkv" if dims.group == 1 else "q":
            site = f"attn.{kind}"
            reads = {f"blocks.{n}.{site}": f"blocks.{n}.resid_pre" for n in layers if n > first}
            if reads and not any({site, "attn.z"} & fam.absent(n).keys() for n in layers):
                head = {"q": 0, "k": dims.n_heads - 1, "v": dims.n_heads // 2}[kind]
                found[f"{stack} {kind}"] = Path(first, head, reads)
    last = fam.encoder - 1
    if dims.group == 1 and "attn.z" not in fam.absent(last):
        # An encoder's last layer writes what every decoder layer's keys are made of.
        through = f"blocks.{last}.resid_post"
        reads = {f"blocks.{n}.cross_attn.k": through for n in stacks["decoder"]}
        found["cross k"] = Path(last, 0, reads)
    return found
