"""A verdict, held against the failures that the ledger makes its model expect."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from conformance.spec import EVERY_CHECK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conformance.records import Verdict
    from conformance.spec import Defect, ExpectedFailure, ModelSpec, Variant

_PACKAGES = ("transformer-lens", "transformers")


def expected(
    verdict: Verdict, model: ModelSpec, versions: Mapping[str, str] | None = None
) -> Verdict:
    """Apply the ledger of expected failures, strictly.

    A failure is expected only where the ledger says and, if it gives a signature, only with that
    signature; if all of its entries name kinds of site, only at those kinds. A pass that the
    ledger expects to fail is ``xpassed``.

    Args:
        verdict: as it was reached, without a ledger.
        model: the entry it is about.
        versions: of the packages it was reached with; the installed ones unless given.
    """
    if verdict.outcome not in ("passed", "failed"):
        return verdict
    entries = applicable(verdict, model, installed() if versions is None else versions)
    if not entries:
        return verdict
    if verdict.outcome == "passed":
        listed = "; ".join(f"{entry.reason} ({_source(entry)})" for entry in entries)
        return replace(
            verdict,
            outcome="xpassed",
            reason=f"passed, but the ledger expects a failure: {listed}\n"
            "hint: if this is repaired, remove the entry or bound its versions",
        )
    if new := unnamed(verdict, entries):
        note = f"fails also where the ledger does not expect it: at {', '.join(new)}"
        return replace(verdict, reason=_joined(note, verdict.reason))
    for entry in entries:
        if _is_signed(entry, verdict):
            reason = f"expected: {entry.reason} ({entry.link})"
            return replace(verdict, outcome="xfailed", reason=_joined(reason, verdict.reason))
    listed = " or ".join(f"{_signature(entry)} ({_source(entry)})" for entry in entries)
    note = (
        "failed differently from what the ledger expects: first divergence at "
        f"{verdict.first_divergence}, expected {listed}"
    )
    return replace(verdict, reason=_joined(note, verdict.reason))


def applicable(
    verdict: Verdict, model: ModelSpec, versions: Mapping[str, str]
) -> tuple[ExpectedFailure, ...]:
    """The entries that speak of this verdict's case, under these versions."""
    return tuple(
        entry
        for entry in model.expected_failures
        if entry.subject == verdict.subject
        and entry.check in (verdict.check, EVERY_CHECK)
        and (entry.dtype is None or (verdict.dtype or model.dtype) in entry.dtype)
        and holds(entry, versions)
    )


def holds(entry: ExpectedFailure | Defect | Variant, versions: Mapping[str, str]) -> bool:
    """Whether the versions meet an entry's conditions; a package that is missing meets none."""
    wanted = {"transformer-lens": entry.transformer_lens, "transformers": entry.transformers}
    return all(
        specifier is None or _contains(specifier, versions.get(package))
        for package, specifier in wanted.items()
    )


def _contains(wanted: str, version: str | None) -> bool:
    if version is None or not version[:1].isdigit():
        return False  # "not installed"
    return SpecifierSet(wanted).contains(version, prereleases=True)


def installed() -> dict[str, str]:
    """The versions that conditions are about."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def failing(verdict: Verdict) -> tuple[str, ...]:
    """The kinds of site at which a verdict failed."""
    return tuple(verdict.metrics.get("failing", ()))


def unnamed(verdict: Verdict, entries: Sequence[ExpectedFailure]) -> list[str]:
    """The kinds of site that fail and that no entry names; none if an entry names no kinds."""
    if any(entry.kinds is None for entry in entries):
        return []
    known = {kind for entry in entries for kind in entry.kinds or ()}
    return [kind for kind in failing(verdict) if kind not in known]


def _is_signed(entry: ExpectedFailure, verdict: Verdict) -> bool:
    """Whether the failure begins where the entry says, and is at one of its kinds of site."""
    if entry.first_divergence not in (None, verdict.first_divergence):
        return False
    return entry.kinds is None or not set(entry.kinds).isdisjoint(failing(verdict))


def _signature(entry: ExpectedFailure) -> str:
    if entry.first_divergence is not None:
        return f"at {entry.first_divergence}"
    return f"at sites of kind {', '.join(entry.kinds or ())}"


def _source(entry: ExpectedFailure) -> str:
    return ", ".join(filter(None, (entry.at, entry.link)))


def _joined(first: str, second: str | None) -> str:
    return f"{first}\n{second}" if second else first
