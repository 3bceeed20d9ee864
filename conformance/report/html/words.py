"""How pages write numbers and verdicts: a sign and a word, so that no colour is needed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from conformance.report.terminal import WORDS
from conformance.standing import CONFORMS, KNOWN_DEFECT, NOT_APPLICABLE, STATES

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What stands where there is nothing: a dash.
NOTHING = "\u2013"
#: Powers of ten that read best without an exponent.
_PLAIN = range(-3, 3)
#: A sign for each outcome, no two alike.
SIGNS: Mapping[str, str] = {
    "passed": "✓",
    "failed": "✗",
    "error": "?",
    "crashed": "‼",
    "timeout": "∞",
    "oom": "▲",
    "skipped": "○",
    "not_applicable": NOTHING,
    "xfailed": "◇",
    "xpassed": "◆",
}
#: The class that colours it besides.
CLASSES: Mapping[str, str] = {
    "passed": "ok",
    "error": "err",
    "skipped": "na",
    "not_applicable": "na",
    "xfailed": "known",
}
#: What each word means, for the legend.
MEANINGS: Mapping[str, str] = {
    "passed": "every comparison holds",
    "failed": "the port computes something else",
    "error": "the harness could not do its job; says nothing of the port",
    "crashed": "the port's process died",
    "timeout": "the port did not come to an end",
    "oom": "the port ran out of memory",
    "skipped": "not run",
    "not_applicable": "the check means nothing here; never counts as a pass",
    "xfailed": "fails as the ledger of known defects says",
    "xpassed": "a known defect that no longer shows: the ledger is out of date",
}
JUDGEMENTS: Mapping[str, str] = {
    "structure": "structure",
    "exact": "exact values",
    "same_function": "same function",
    "same_precision": "same precision",
}


def badge(outcome: str) -> dict[str, str]:
    """Sign, word and class of an outcome."""
    return {
        "sign": SIGNS[outcome],
        "word": WORDS[outcome],
        "cls": CLASSES.get(outcome, "bad"),
        "outcome": outcome,
    }


def standing_badge(state: str) -> dict[str, str]:
    """The same for what all checks of a port amount to."""
    if state == CONFORMS:
        return {"sign": "✓", "word": CONFORMS, "cls": "ok"}
    if state == KNOWN_DEFECT:
        return {"sign": "◇", "word": state, "cls": "known"}
    if state in (NOT_APPLICABLE, "skipped", "not run"):
        return {"sign": NOTHING, "word": state, "cls": "na"}
    return {"sign": "?" if state == "not judged" else "✗", "word": state, "cls": "bad"}


def rank(state: str) -> int:
    """Where a state stands among all, the worst first."""
    return STATES.index(state)


def number(value: Any) -> float:
    """A number of the metrics, which JSON may spell ``nan`` or ``inf``; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def sci(value: Any, digits: int = 2) -> str:
    """``1.2e-15``, ``0.25``; ``NaN`` and ``∞`` as such; a dash for nothing."""
    if value is None:
        return NOTHING
    x = number(value)
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    if x == 0 or math.floor(math.log10(abs(x))) in _PLAIN:
        return f"{x:.{digits}g}"
    return f"{x:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def value(x: Any) -> str:
    """An entry of a tensor."""
    return NOTHING if x is None else f"{number(x):.6g}"


def percent(x: Any) -> str:
    """``100 %``, never rounded up to it."""
    part = number(x)
    text = f"{part:.1%}"
    return ("99.9 %" if part < 1 else "100 %") if text == "100.0%" else text.replace("%", " %")


def count(x: Any) -> str:
    """A count of parameters: ``135 M``."""
    n = number(x)
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def size(x: Any) -> str:
    """Bytes in GiB or MiB."""
    n = number(x)
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def duration(x: Any) -> str:
    """Seconds as people say them."""
    seconds = number(x)
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
