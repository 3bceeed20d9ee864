"""An explanation as a page of text: what a colleague would write after looking into it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conformance.explain.explanations import Bisection, Explanation, Location, MinimalCase

_WIDTH = 88


def page(explanation: Explanation) -> str:
    """The whole page, ending with a newline."""
    e = explanation
    evidence = "a twin" if e.evidence == "twin" else "trained weights"
    verdict = "conforms" if e.conforms else "does not conform"
    lines = [f"{e.model}, {e.subject}: {verdict} ({e.architecture}, {evidence})", ""]
    if e.conforms:
        lines += _conforming(e)
    else:
        lines += _divergence(e)
    lines += _section("Notes", e.notes)
    lines += _section("Pictures", e.pictures, wrap=False)
    lines += _section("Next", [e.next_command] if e.next_command else [], wrap=False)
    versions = ", ".join(f"{name} {version}" for name, version in e.versions.items())
    lines.append(f"{versions}; {e.duration_s:.1f} s")
    return "\n".join(lines) + "\n"


def _conforming(e: Explanation) -> list[str]:
    text = [
        "Nothing differs: every judgement that was made holds, with the margins below "
        "(measured / allowed; above 1 would fail). That is the forward pass; edits, gradients, "
        "caches and what else people do with a lens are judged by `conformance run` alone."
    ]
    rows = [
        f"{m.check:<16} {m.judgement.replace('_', ' '):<15} {m.compared:>6} compared, "
        f"worst {m.margin:.1e}" + (f" at {m.site}" if m.site else "")
        for m in e.margins
    ]
    return [*_wrapped(text), "", *(f"  {row}" for row in rows), ""]


def _divergence(e: Explanation) -> list[str]:
    lines = _section("What differs", what(e.location))
    lines += _section("Where in it", [e.location.sentence] if e.location.sentence else [])
    lines += _section("Besides", map(_besides, e.others))
    lines += _section("What comes of it", [e.symptom] if e.symptom else [])
    lines += _section("Cause", _causes(e))
    lines += _section("Weight processing, each flag alone", map(_tried, e.flags), wrap=False)
    lines += _section("The same in other dtypes", map(_tried, e.dtypes), wrap=False)
    if e.minimal is not None:
        lines += _section("Smallest case", _minimal(e.minimal))
    return lines


def what(location: Location) -> list[str]:
    """What differs, by how much, and what was allowed: a few sentences."""
    at, part = location.site or "the forward pass", location.part
    if location.kind == "structure":
        return [f"{at}: {location.sentence.splitlines()[0] if location.sentence else part}."]
    if location.kind == "weights":
        first = f"The loaded weight {at} is not the checkpoint's ({part})."
    elif location.kind == "processing":
        first = f"Weight processing changes what the model computes: see {at}, {part}."
    elif location.kind == "wiring" and location.between is not None:
        first = f"{at} differs ({part}): between {location.between[0]}, which agrees, and there."
    elif location.kind == "wiring":
        first = f"{at} differs ({part})."
    elif location.part == "a hook":
        first = f"The hook of {at} shows something else; what is computed from it agrees."
    elif location.kind == "precision":
        first = f"{at} ({part}) is the same function, computed less exactly than the reference."
    elif location.component is not None:
        first = (
            f"{at} ({part}) is wrong by itself: given the reference's own input, "
            f"{location.component} does not give what the reference gives."
        )
    else:
        first = f"{at} ({part}) differs."
    return [first, *_size(location)]


def _size(location: Location) -> list[str]:
    if location.measured is None:
        return []
    kind = "relative rms error" if location.judgement == "same_precision" else "relative difference"
    allowed = location.allowed
    if location.judgement == "exact" and not allowed:
        limit = "weights must be exact"
    else:
        limit = f"{allowed:.1e} is allowed" if allowed is not None else "nothing was bounded"
    text = f"Its largest {kind} is {location.measured:.3g}; {limit}."
    if location.index is not None and location.reference is not None:
        one, other = _apart(location.reference, location.subject)
        text += f" At {list(location.index)} the reference has {one}, the port {other}"
        text += f" (prompt {location.prompt})." if location.prompt else "."
    return [text]


def _apart(a: float, b: float | None) -> tuple[str, str]:
    """Both numbers, with enough digits to tell them apart."""
    if b is None:
        return f"{a:.9g}", "nothing"
    for digits in (6, 9, 12):
        shown = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if shown[0][:-2] != shown[1][:-2]:
            return shown
    return f"{a:.17g}", f"{b:.17g}"


def _besides(location: Location) -> str:
    """A further difference, in one sentence."""
    size = "" if location.measured is None else f", {location.measured:.1e}"
    sentence = (location.sentence.splitlines() or [""])[0]
    return f"{location.site or 'the forward pass'} ({location.part}){size}: {sentence}"


def _causes(e: Explanation) -> list[str]:
    said = [
        f"{cause.statement}. With that, recomputing {cause.site} in float64 comes within "
        f"{cause.residual:.1e} of the port; the right formula is {cause.without:.1e} away."
        for cause in e.causes
    ]
    return [*([e.diagnosed] if e.diagnosed else []), *said]


def _tried(b: Bisection) -> str:
    word = "right" if b.ok else "WRONG"
    if b.measured is None:
        word = "raises" if b.note.startswith("it raises") else "not tried"
    text = f"{b.setting:<32} {word}"
    if b.measured is not None:
        text += f", {b.measured:.1e}"
        text += f" ({b.allowed:.1e} allowed)" if b.allowed is not None else ""
    if b.site and not b.ok:
        text += f", first at {b.site}"
    return text + (
        f"; {b.note.removeprefix('not tried: ').removeprefix('it raises ')}" if b.note else ""
    )


def _minimal(m: MinimalCase) -> list[str]:
    layers = f"{m.layers} of {m.original_layers} layers"
    sequences = "" if len(m.tokens) <= 1 else f"{len(m.tokens)} sequences of "
    text = f"{sequences}{m.n_tokens} of {m.original_tokens} tokens, {layers}."
    if m.script is None:
        return [text, f"No script: {m.note}."]
    if not m.verified:
        return [text, f"Script: {m.script}, not verified: {m.note}."]
    said = f"Script: {m.script} ({m.note}). Run in a process of its own it exits with 1 and says:"
    return [text, said, f"  {m.shows}"]


def _section(title: str, body: Iterable[str], *, wrap: bool = True) -> list[str]:
    texts = [t for t in body if t]
    if not texts:
        return []
    lines = _wrapped(texts, "  ") if wrap else [f"  {t}" for t in texts]
    return [title, *lines, ""]


def _wrapped(texts: Sequence[str], indent: str = "") -> list[str]:
    lines: list[str] = []
    for text in texts:
        for line in text.splitlines():
            own = indent + " " * (len(line) - len(line.lstrip()))
            lines += textwrap.wrap(
                line.strip(),
                _WIDTH,
                initial_indent=own,
                subsequent_indent=own,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines
