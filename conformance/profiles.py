"""What a report shows of a port besides its verdicts: errors by layer and by head, and by size.

Nothing here decides anything. Numbers are rounded to three digits and there are few of them: they
are kept in ``records.jsonl``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from conformance.bounds import ZERO
from conformance.compare import kept
from conformance.records import PER_DECADE
from conformance.sites import KINDS, parse
from conformance.verdicts import margin

if TYPE_CHECKING:
    import torch

    from conformance.records import Comparison
    from conformance.reference import Reference

#: Sites of the residual stream and of what is added to it, whose error by layer is kept.
STREAM: frozenset[str] = frozenset({"resid_post", "attn_out", "mixer_out", "mlp_out"})
#: Sites whose error is kept head by head.
BY_HEAD: frozenset[str] = frozenset({"attn.pattern", "attn.z"})
#: The outermost bins of a histogram: what is smaller, or larger, is counted there.
_SMALLEST, _LARGEST = -18 * PER_DECADE, 3 * PER_DECADE


def rounded(value: float) -> float:
    """Three significant digits; NaN and infinities as they are."""
    return float(f"{value:.3g}")


def relative(
    site: str, truth: torch.Tensor, value: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Differences entry by entry, relative to the largest entry of their row, as in
    :func:`conformance.compare.measure`; 0 at entries that do not count, inf for NaN.

    Returns:
        float64, of ``truth``'s shape.
    """
    import torch

    truth, value = truth.double(), value.double()
    keep = kept(site, truth, valid)
    d = torch.where(truth == value, 0.0, (value - truth).abs())
    size = torch.where(truth.isinf(), 0.0, truth.abs())
    if keep is not None:
        d, size = torch.where(keep, d, 0.0), torch.where(keep, size, 0.0)
    last = 2 if truth.ndim == 4 and not site.endswith("attn.pattern") else 1
    scale = size.amax(dim=tuple(range(truth.ndim - last, truth.ndim)), keepdim=True)
    whole = float(size.max())
    scale = torch.where(scale > ZERO, scale, whole if whole > ZERO else 1.0)
    return torch.nan_to_num(d / scale, nan=float("inf"), posinf=float("inf"))


class ByLayer:
    """The comparison nearest to (or furthest past) its bound, for each part of each layer."""

    def __init__(self) -> None:
        self._worst: dict[str, dict[str, dict[int | None, Comparison]]] = {}

    def see(self, dtype: str, part: str, comparison: Comparison) -> None:
        """One comparison at a site of the forward pass."""
        if comparison.judgement == "structure" or comparison.site is None:
            return
        layer = parse(comparison.site).layer
        layers = self._worst.setdefault(dtype, {}).setdefault(part, {})
        if layer not in layers or margin(comparison) > margin(layers[layer]):
            layers[layer] = comparison

    def plain(self) -> dict[str, dict[str, list[list[Any]]]]:
        """dtype -> part -> [layer or None, measured, allowed, site], by layer."""
        return {
            dtype: {
                part: [
                    [layer, rounded(c.measured), rounded(c.allowed or 0.0), c.site]
                    for layer, c in sorted(layers.items(), key=lambda item: item[0] or 0)
                ]
                for part, layers in parts.items()
            }
            for dtype, parts in self._worst.items()
        }


class Histograms:
    """How many entries of a kind of site differ by how much, all layers together."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, dict[str, Any]]] = {}

    def see(self, dtype: str, site: str, differences: torch.Tensor) -> None:
        """Differences relative to their row, as :func:`relative` gives them, any shape."""
        import torch

        found = self._counts.setdefault(dtype, {}).setdefault(
            parse(site).kind, {"equal": 0, "not_finite": 0, "bins": {}}
        )
        flat = differences.reshape(-1)
        finite = flat[flat.isfinite()]
        different = finite[finite > 0]
        found["not_finite"] += flat.numel() - finite.numel()
        found["equal"] += finite.numel() - different.numel()
        bins = (different.log10() * PER_DECADE).floor().clamp(_SMALLEST, _LARGEST).long()
        for number, count in zip(*torch.unique(bins, return_counts=True), strict=True):
            found["bins"][int(number)] = found["bins"].get(int(number), 0) + int(count)

    def plain(self) -> dict[str, dict[str, dict[str, Any]]]:
        """dtype -> kind of site -> ``equal``, ``not_finite``, ``first``, ``counts``.

        ``counts[i]`` is of differences from 10**((first + i) / 2) on, up to the next.
        """
        return {
            dtype: {kind: _without_gaps(found) for kind, found in kinds.items()}
            for dtype, kinds in self._counts.items()
        }


def _without_gaps(found: dict[str, Any]) -> dict[str, Any]:
    bins: dict[int, int] = found["bins"]
    first = min(bins, default=0)
    counts = [bins.get(number, 0) for number in range(first, max(bins, default=-1) + 1)]
    return {
        "equal": found["equal"],
        "not_finite": found["not_finite"],
        "first": first if counts else None,
        "counts": counts,
    }


class ByHead:
    """The largest difference of each head of each layer."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[tuple[int, float, list[float]]]] = {}

    def see(self, site: str, differences: torch.Tensor, allowed: float | None) -> None:
        """One site with heads; ``differences`` as :func:`relative` gives them."""
        where = parse(site)
        head = KINDS[where.kind].axes.index("head")
        others = [axis for axis in range(differences.ndim) if axis != head]
        errors = [rounded(x) for x in differences.amax(dim=others).tolist()]
        self._kinds.setdefault(where.kind, []).append(
            (where.layer or 0, rounded(allowed or 0.0), errors)
        )

    def plain(self) -> dict[str, list[list[Any]]]:
        """Kind of site -> [layer, allowed, errors by head], by layer."""
        return {kind: [list(row) for row in sorted(rows)] for kind, rows in self._kinds.items()}


def facts(reference: Reference) -> dict[str, Any]:
    """What the model is: sizes and names, as HuggingFace's config has them.

    ``parameters`` counts each of them once, tied ones too.
    """
    dims, trace = reference.dims, reference.trace
    names = [name for name in trace if name.startswith("parameter:")]
    sizes = {
        "parameters": sum(math.prod(trace.shape(name)) for name in names),
        "kind": _kind(reference),
        "layers": dims.n_layers,
        "heads": dims.n_heads,
        "kv_heads": dims.n_kv_heads,
        "d_model": dims.d_model,
        "d_head": dims.d_head,
        "d_vocab": dims.d_vocab,
        "context": dims.n_ctx,
        "experts": dims.n_experts,
        "dtype": reference.dtype,
    }
    return sizes | {"prompts": {p.name: list(p.tokens.shape) for p in reference.prompts}}


def _kind(reference: Reference) -> str:
    """What sort of architecture it is, in the words people use."""
    blocks = [reference.family.of(layer) for layer in range(reference.dims.n_layers)]
    if any(block.mixer for block in blocks):
        return "hybrid" if any(block.attn for block in blocks) else "recurrent"
    if any(block.router for block in blocks):
        return "mixture of experts"
    return "latent attention" if any(block.kv_latent for block in blocks) else "dense"
