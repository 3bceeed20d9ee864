"""The one place that turns comparisons into a verdict."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from conformance.records import Comparison, JudgementSummary, Outcome, Verdict
from conformance.sites import USUAL, computation_order, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conformance.sites import Order
    from conformance.spec import ModelSpec

#: How many comparisons of each judgement a record keeps: those nearest to, or furthest past,
#: their bound.
WORST = 6


def conclude(
    model: ModelSpec,
    subject: str,
    check: str,
    comparisons: Sequence[Comparison],
    metrics: dict[str, Any],
    duration_s: float,
    error: str | None = None,
    order: Order = USUAL,
) -> Verdict:
    """Failed if any comparison does not hold; error if nothing was compared.

    Args:
        error: why the harness could not bring the check to its end; no verdict on the port then.
        order: of the architecture's computation.
    """
    failures = [c for c in comparisons if not c.ok]
    outcome: Outcome = "failed" if failures else "passed"
    reason = None
    if not comparisons:
        outcome, reason = "error", "the check compared nothing"
        if excuses := metrics.get("not_applicable"):
            outcome = "not_applicable"
            reason = "; ".join(f"{what}: {why}" for what, why in excuses.items())
    divergence = first_divergence(failures, order)
    if failures:
        at = next((c for c in failures if c.site == divergence), failures[0])
        reason = f"{len(failures)} of {len(comparisons)} comparisons failed; first: {describe(at)}"
        metrics = {**metrics, "failing": failing(failures)}
    if error is not None:
        outcome, reason = "error", f"the harness failed: {error}"
    warnings = sum(c.note.startswith("warning") for c in comparisons)
    if warnings:
        metrics = {**metrics, "warnings": warnings}
    return Verdict(
        model=model.id,
        subject=subject,
        check=check,
        outcome=outcome,
        architecture=model.architecture,
        evidence=model.evidence,
        dtype=model.dtype,
        verdict={j: summarise(group) for j, group in by_judgement(comparisons)},
        first_divergence=divergence,
        reason=reason,
        duration_s=round(duration_s, 3),
        worst=tuple(
            c
            for _, group in by_judgement(comparisons)
            for c in sorted(group, key=margin, reverse=True)[:WORST]
        ),
        metrics=metrics,
    )


def margin(comparison: Comparison) -> float:
    """How far past its bound a measurement is: above 1 fails. NaN counts as infinitely far."""
    if comparison.allowed is None:
        return -1.0
    if math.isnan(comparison.measured):
        return math.inf
    if comparison.allowed == 0.0:
        return 0.0 if comparison.measured == 0.0 else math.inf
    return comparison.measured / comparison.allowed


def by_judgement(
    comparisons: Iterable[Comparison],
) -> Iterable[tuple[str, list[Comparison]]]:
    """Comparisons grouped by judgement, in a fixed order."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.judgement, []).append(comparison)
    order = ("structure", "exact", "same_function", "same_precision")
    return [(name, groups[name]) for name in order if name in groups]


def summarise(group: Sequence[Comparison]) -> JudgementSummary:
    """The numbers of one judgement."""
    worst = max(group, key=margin)
    m = margin(worst)
    return JudgementSummary(
        compared=len(group),
        failed=sum(not c.ok for c in group),
        measured=worst.measured,
        allowed=worst.allowed,
        margin=None if m < 0 else m,
        site=worst.site,
    )


def first_divergence(failures: Sequence[Comparison], order: Order = USUAL) -> str | None:
    """The first failing site in the order of computation: a wrong formula before lost precision.

    A site that is no place of the forward pass (a weight) keeps the order of comparison.
    """
    for judgement in ("structure", "exact", "same_function", "same_precision"):
        sites = [c.site for c in failures if c.judgement == judgement and c.site is not None]
        places = [s for s in sites if _is_place(s)]
        if judgement == "structure" and not places and sites:
            later = first_divergence([c for c in failures if c.judgement != "structure"], order)
            return later or sites[0]
        if places:
            return computation_order(places, order)[0]
        if sites:
            return sites[0]
    return None


def failing(failures: Iterable[Comparison]) -> list[str]:
    """The kinds of site at which something fails, sorted; another site's is its name in a block."""
    sites = {c.site for c in failures if c.site is not None}
    return sorted({parse(s).kind if _is_place(s) else _in_block(s) for s in sites})


def _in_block(name: str) -> str:
    return name.split(".", 2)[2] if re.match(r"blocks\.\d+\.", name) else name


def _is_place(name: str) -> bool:
    try:
        parse(name)
    except ValueError:
        return False
    return True


def describe(c: Comparison) -> str:
    """One comparison in words: where, how far, what was allowed and why."""
    where = f"{c.site or 'the model'}" + (f" on {c.prompt}" if c.prompt else "")
    if c.judgement == "structure":
        return f"{where}: {c.note}"
    at = ""
    if c.index is not None:
        at = f" at {list(c.index)} (reference {c.reference:.6g}, subject {c.subject:.6g})"
    allowed = "not bounded" if c.allowed is None else f"allowed {c.allowed:.2e} ({c.bound})"
    name = c.judgement.replace("_", " ")
    return f"{where}: {name} {c.measured:.2e}{at}, {allowed}"
