"""Runs without a model: records made by hand, and by hypothesis."""

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import jsonschema
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from jsonschema.exceptions import best_match

from conformance.checks.names import CHECKS
from conformance.records import OUTCOMES, Footer, Header, Record, Records, Verdict, to_json
from conformance.schema import records_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Row = tuple[str, str, str, str]
#: For tests of whole runs, which are slow where a machine is busy.
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def verdict(model: str, subject: str, check: str, outcome: str, **fields: Any) -> Verdict:
    """A twin of GPT-2, unless told otherwise; what failed has a first divergence and a reason."""
    given: dict[str, Any] = {"architecture": "GPT2LMHeadModel", "evidence": "twin"}
    if outcome in ("failed", "xfailed"):
        given["first_divergence"] = "blocks.1.attn.q"
        given["reason"] = "1 of 9 comparisons failed"
    if outcome == "xfailed":
        given["reason"] = f"expected: known (docs/findings/1.md)\n{given['reason']}"
    if outcome in ("skipped", "not_applicable", "error"):
        given["reason"] = f"because it is {outcome}"
    return Verdict(model, subject, check, outcome, **{**given, **fields})  # type: ignore[arg-type]


def run(
    verdicts: Iterable[Verdict | Row],
    *,
    version: str = "4.3.0",
    started: str = "2026-01-01T00:00:00+00:00",
    selected: int | None = None,
    cut: bool = False,
) -> Records:
    """A run that holds these verdicts; ``cut`` short, or stopped before all ``selected`` ones."""
    made = tuple(v if isinstance(v, Verdict) else verdict(*v) for v in verdicts)
    header = Header(
        started,
        {"transformer-lens": version, "transformers": "5", "torch": "2.13", "python": "3.11"},
        "Linux-6-x86_64, x86_64, cpython",
        {"prompts": 1},
        "/elsewhere/models.toml",
        "a" * 64,
    )
    counted: Counter[str] = Counter(v.outcome for v in made)
    asked = len(made) if selected is None else selected
    footer = Footer("2026-01-01T00:10:00+00:00", 0, 600.0, dict(counted), asked)
    return Records(header, made, None if cut else footer)


def write(records: Records, path: Path) -> Path:
    """A records file."""
    lines: list[Record] = [records.header, *records.names, *records.verdicts]
    lines += [records.footer] if records.footer else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(to_json(line) + "\n" for line in lines), encoding="utf-8")
    return path


@st.composite
def rows(draw: st.DrawFn, outcomes: Sequence[str] = OUTCOMES) -> list[Row]:
    """Verdicts of a few cases, no case twice, in any order."""
    cases = st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["bridge", "hooked"]),
        st.sampled_from(CHECKS[:4]),
    )
    chosen = draw(st.lists(cases, unique=True, min_size=1, max_size=12))
    return [(*case, draw(st.sampled_from(outcomes))) for case in chosen]


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = records_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def obeys_the_schema(line: str) -> bool:
    """Whether a line of a records file is what its schema promises; raises what is wrong."""
    error = best_match(_validator().iter_errors(json.loads(line)))
    if error is not None:
        raise error
    return True
