"""Our tiers beside those that somebody else assigned: ``docs/tiers.md``."""

from __future__ import annotations

import math
import tomllib
from typing import TYPE_CHECKING

from conformance.errors import SpecError
from conformance.footprint.fitting import size
from conformance.spec.tiers import BEYOND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from conformance.footprint.table import Row
    from conformance.spec import Spec

#: Bytes of a parameter in the narrowest dtype that people run models in: bfloat16, float16.
_NARROW = 2


def read_tiers_of(path: Path) -> Mapping[str, Sequence[str]]:
    """Tier -> names, from a TOML file of tables with ``names``.

    Raises:
        SpecError: the file cannot be read or is not of that kind.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {tier: tuple(map(str, table["names"])) for tier, table in tables.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SpecError(
            f"{path}: no list of tiers: {error}", 'write [tier] with names = ["org/name", ...]'
        ) from error


def cause(row: Row, theirs: str, sizes: Mapping[str, int]) -> str:
    """Why two tiers differ, in words that many models share; empty where they agree.

    Args:
        theirs: the other's tier, by our name of it; another word where it is none of ours.
        sizes: bytes of the largest memory of each tier of ours.
    """
    if row.shape is None or row.footprint is None:
        return "unknown: its sizes are not published where ours are from"
    if row.tier == theirs:
        return ""
    if theirs not in sizes and theirs != BEYOND:
        return f"not a class of machine: {theirs}"
    there = sizes.get(theirs, math.inf)
    if sizes.get(row.tier, math.inf) < there:
        return "smaller: what is needed, computed, is below what was assigned"
    needs = (
        (_NARROW, "weights: in two bytes each they alone exceed the tier that was assigned"),
        (4, "dtype: the weights fit there in two bytes each, not in float32"),
        (8, "float64: the weights fit there in float32, not in the float64 of the first verdict"),
    )
    for width, said in needs:
        if row.shape.parameters * width > there:
            return said
    if min(row.footprint.host_bytes, row.footprint.gpu_bytes) > there:
        phase = row.footprint.peak.name
        return f"copies: the weights fit there once in float64; {phase} holds several"
    return "margin: it fits there as predicted, not with the error of predictions counted in"


def compared(found: Sequence[Row], assigned: Mapping[str, Sequence[str]], spec: Spec) -> str:
    """Markdown: how many agree, the causes of the rest, and every model.

    Args:
        assigned: tier -> names on the hub; tiers of ours by our names, anything else as it is.
    """
    rows = {row.id: row for row in found if row.kind == "name"}
    sizes = {tier.name: tier.size for tier in spec.tiers}
    told: list[tuple[str, str, Row | None, str]] = []
    for theirs, names in assigned.items():
        for name in names:
            row = rows.get(name)
            why = cause(row, theirs, sizes) if row else "not among our names"
            told.append((name, theirs, row, why))
    counts: dict[str, int] = {}
    for *_, why in told:
        counts[why] = counts.get(why, 0) + 1
    agree = counts.pop("", 0)
    lines = [f"{agree} of {len(told)} agree.", "", "| models | cause |", "| --: | --- |"]
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    lines += [f"| {count} | {why} |" for why, count in ranked]
    lines += ["", "| model | parameters | needs | ours | theirs | cause |"]
    lines += ["| --- | --: | --: | --- | --- | --- |"]
    for name, theirs, row, why in told:
        known = row is not None and row.shape is not None and row.footprint is not None
        if known:
            assert row is not None
            assert row.shape is not None
            assert row.footprint is not None
            count, needs = f"{row.shape.parameters:,}", size(row.footprint.host_bytes)
        else:
            count, needs = "", ""
        ours = row.tier if row is not None else ""
        lines.append(f"| {name} | {count} | {needs} | {ours} | {theirs} | {why.split(':')[0]} |")
    return "\n".join(lines)
