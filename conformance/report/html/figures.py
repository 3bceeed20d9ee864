"""The figures of one port on its page: error by layer, components, histograms, heads, logits."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance import bounds
from conformance.records import PER_DECADE
from conformance.report.html.charts import Point, by_layer, histogram
from conformance.report.html.words import NOTHING, count, number, percent, sci, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from conformance.records import Verdict

#: Per cent of what is allowed, up to which a cell has each shade but the darkest.
SHADES = (1, 10, 50)
_STREAM = ("resid_post", "attn_out", "mixer_out", "mlp_out")
_PARTS = ("embed", "ln1", "attn", "mixer", "ln2", "mlp", "block", "ln_final", "unembed")
_PART_NAMES = {
    "block": "whole block",
    "ln_final": "final norm",
    "unembed": "unembedding",
    "attn": "attention",
    "mlp": "MLP",
    "embed": "embedding",
}


@dataclass(frozen=True)
class Cell:
    """One number of a heat map.

    Attributes:
        text: as it reads.
        shade: 0 to 5; 5 is beyond what is allowed, and marked with a sign too.
        title: what was allowed, and where it was.
    """

    text: str = ""
    shade: int = 0
    title: str = ""


@dataclass(frozen=True)
class Grid:
    """A heat map that is a table."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Figure:
    """A chart and the table of its numbers."""

    caption: str
    chart: Markup
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    grid: Grid | None = None


@dataclass(frozen=True)
class Figures:
    """All of them; what the records do not hold is empty."""

    stream: list[Figure] = field(default_factory=list)
    components: list[Grid] = field(default_factory=list)
    sizes: list[Figure] = field(default_factory=list)
    heads: list[Grid] = field(default_factory=list)
    logits_header: tuple[str, ...] = ()
    logits: list[tuple[str, ...]] = field(default_factory=list)


def figures(name: str, verdicts: Mapping[str, Verdict]) -> Figures:
    """The figures of one port.

    Args:
        name: unique on the page.
        verdicts: check -> verdict.
    """
    seen = {check: verdict.metrics for check, verdict in verdicts.items()}
    activations, components = seen.get("activations", {}), seen.get("components", {})
    logits = seen.get("logits", {})
    return Figures(
        stream=_stream(name, activations),
        components=[_components(d, p) for d, p in components.get("by_layer", {}).items() if p],
        sizes=_sizes(name, activations.get("differences", {}), logits.get("differences", {})),
        heads=[_heads(kind, rows) for kind, rows in activations.get("by_head", {}).items()],
        logits_header=_LOGITS,
        logits=_logits(logits),
    )


def judgement(dtype: str) -> str:
    """Which judgement a dtype is of."""
    if dtype == "float64":
        return "same function (promoted float64)"
    return f"same precision ({dtype}, as users run it)"


def shaded(measured: Any, allowed: Any, site: str = "") -> Cell:
    """A measurement against its bound."""
    m, a = number(measured), number(allowed)
    ok = m <= a
    part = m / a if a > 0 else (0.0 if m == 0 else math.inf)
    shade = 0 if m == 0 else 1 + sum(100 * part > limit for limit in SHADES)
    title = f"{sci(allowed)} allowed"
    return Cell(
        text=sci(measured) if ok else f"✗ {sci(measured)}",
        shade=shade if ok else 5,
        title=f"{title} at {site}" if site else title,
    )


def _stream(name: str, metrics: Mapping[str, Any]) -> list[Figure]:
    """Schema 2 had the residual stream alone, on the longest prompt, without layers."""
    kept = metrics.get("by_layer") or {
        dtype: {"resid_post": [[n, *pair, ""] for n, pair in enumerate(pairs)]}
        for dtype, pairs in metrics.get("resid_post_error", {}).items()
    }
    return [
        _one_stream(f"{name}-stream-{dtype}", dtype, parts)
        for dtype, parts in kept.items()
        if parts.get("resid_post")
    ]


def _one_stream(name: str, dtype: str, parts: Mapping[str, Any]) -> Figure:
    points = [Point(n, number(m), number(a)) for n, m, a, _ in parts["resid_post"]]
    kinds = [kind for kind in _STREAM if parts.get(kind)]
    by_kind = {kind: {row[0]: row for row in parts[kind]} for kind in kinds}
    rows = []
    for point in points:
        cells = [by_kind[kind].get(point.layer) for kind in kinds]
        rows.append(
            (
                str(point.layer),
                *(text for row in cells for text in (_pair(row) if row else (NOTHING, NOTHING))),
            )
        )
    title = f"Residual-stream error by layer, {judgement(dtype)}"
    what = "relative difference" if dtype == "float64" else "relative rms error"
    return Figure(
        caption=title,
        chart=by_layer(points, name, title, what),
        header=("layer", *(t for kind in kinds for t in (kind, f"{kind}, allowed"))),
        rows=tuple(rows),
    )


def _pair(row: Sequence[Any]) -> tuple[str, str]:
    _, measured, allowed, _ = row
    ok = number(measured) <= number(allowed)
    return sci(measured) if ok else f"✗ {sci(measured)}", sci(allowed)


def _components(dtype: str, parts: Mapping[str, Any]) -> Grid:
    names = [p for p in _PARTS if p in parts] + [p for p in parts if p not in _PARTS]
    cells = {
        (row[0], part): shaded(row[1], row[2], row[3]) for part in names for row in parts[part]
    }
    layers = sorted({layer for layer, _ in cells if layer is not None})
    rows: list[tuple[str, tuple[Cell, ...]]] = [
        (str(n), tuple(cells.get((n, part), Cell()) for part in names)) for n in layers
    ]
    if any(layer is None for layer, _ in cells):
        rows.append(("whole model", tuple(cells.get((None, part), Cell()) for part in names)))
    return Grid(
        f"Each component on its own, {judgement(dtype)}",
        "layer",
        tuple(_PART_NAMES.get(part, part) for part in names),
        tuple(rows),
    )


def _heads(kind: str, rows: Sequence[Any]) -> Grid:
    heads = max((len(errors) for _, _, errors in rows), default=0)
    return Grid(
        f"{kind}: largest difference of each head, same function (promoted float64)",
        "layer",
        tuple(f"head {n}" for n in range(heads)),
        tuple(
            (str(layer), tuple(shaded(error, allowed) for error in errors))
            for layer, allowed, errors in rows
        ),
    )


def _sizes(name: str, sites: Mapping[str, Any], logits: Mapping[str, Any]) -> list[Figure]:
    found = []
    for dtype in dict.fromkeys((*sites, *logits)):
        kinds = {**sites.get(dtype, {}), **logits.get(dtype, {})}
        total: Counter[int] = Counter()
        for one in kinds.values():
            total.update(dict(_bins(one)))
        equal = sum(one["equal"] for one in kinds.values())
        odd = sum(one["not_finite"] for one in kinds.values())
        entries = equal + odd + sum(total.values())
        caption = f"Differences entry by entry, {judgement(dtype)}: {equal:,} of {entries:,} equal"
        caption += f", {odd:,} not finite" if odd else ""
        bound = bounds.SAME_FUNCTION_FLOOR if dtype == "float64" else None
        title = f"Histogram of differences, {judgement(dtype)}"
        if total:
            chart = histogram(total, f"{name}-sizes-{dtype}", title, bound)
            found.append(Figure(caption, chart, grid=_by_kind(dtype, kinds)))
        else:
            from markupsafe import Markup

            found.append(Figure(f"{caption}: both sides are equal, bit for bit.", Markup("")))
    return found


def _bins(one: Mapping[str, Any]) -> list[tuple[int, int]]:
    first = one["first"] or 0
    return [(first + i, n) for i, n in enumerate(one["counts"]) if n]


def _by_kind(dtype: str, kinds: Mapping[str, Any]) -> Grid:
    """Entries by decade, for each kind of site."""
    tables: dict[str, Counter[int]] = {}
    for kind, one in kinds.items():
        decades = tables.setdefault(kind, Counter())
        for place, entries in _bins(one):
            decades[place // PER_DECADE] += entries
    seen = [d for decades in tables.values() for d in decades]
    columns = range(min(seen), max(seen) + 1)
    rows = []
    for kind, decades in tables.items():
        one, all_of_it = kinds[kind], sum(decades.values()) + kinds[kind]["equal"]
        cells = [Cell(f"{one['equal']:,}" if one["equal"] else "")]
        for decade in columns:
            n = decades[decade]
            level = 0 if not n else 1 + min(3, int(4 * n / all_of_it))
            cells.append(Cell(f"{n:,}" if n else "", level))
        rows.append((kind, tuple(cells)))
    return Grid(
        f"Entries by the size of their difference, {judgement(dtype)}",
        "site",
        ("equal", *(f"1e{d}" for d in columns)),
        tuple(rows),
    )


_LOGITS = (
    *("prompt", "weights", "positions", "MSE", "max abs", "mean abs", "1 - cosine"),
    *("KL r,s mean", "KL r,s max", "KL s,r max", "top-1", "top-1 decided", "top-5 overlap"),
)


def _logits(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each prompt, plain and with processed weights."""
    return [
        (
            prompt,
            weights,
            str(m["positions"]),
            *(sci(m[key]) for key in ("mse", "max_abs", "mean_abs")),
            sci(1 - number(m["cosine_min"])),
            *(sci(m[key]) for key in ("kl_rs_mean", "kl_rs_max", "kl_sr_max")),
            *(percent(m[key]) for key in ("top1_agree", "top1_decided_agree", "top5_overlap")),
        )
        for key, weights in (("logits", "as loaded"), ("logits_processed", "processed"))
        for prompt, m in metrics.get(key, {}).items()
    ]


def facts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What the records say of a model, of all its ports together."""
    found: dict[str, Any] = {}
    for verdict in verdicts:
        found |= {k: v for k, v in verdict.metrics.get("facts", {}).items() if v is not None}
    return found


def fact_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sizes of a model, in words."""
    rows = [("kind", str(found["kind"]))] if "kind" in found else []
    if "parameters" in found:
        rows.append(("parameters", f"{count(found['parameters'])} ({found['parameters']:,})"))
    sizes = [
        f"{found[key]:,} {said}"
        for key, said in (
            *(("layers", "layers"), ("d_model", "wide"), ("heads", "heads")),
            *(("kv_heads", "key/value heads"), ("d_head", "per head"), ("experts", "experts")),
            *(("d_vocab", "tokens"), ("context", "positions")),
        )
        if found.get(key)
    ]
    if sizes:
        rows.append(("sizes", ", ".join(sizes)))
    if "dtype" in found:
        rows.append(("dtype judged beside float64", str(found["dtype"])))
    if "footprint" in found:
        parts = sorted(found["footprint"]["parts"].items(), key=lambda part: -part[1])
        said = ", ".join(f"{name} {size(held)}" for name, held in parts[:3])
        rows.append(("most memory", f"{found['footprint']['phase']}: {said}"))
    return rows
