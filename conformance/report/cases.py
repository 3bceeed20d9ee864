"""What the formats of test reports share: a case's standing there, its text and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from conformance.records import HARNESS_FAILED, NONCONFORMING, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.records import Records, Verdict

Status = Literal["passed", "failed", "error", "skipped"]


def status(verdict: Verdict) -> Status:
    """A verdict as test reports know it; only a pass is a pass.

    A known defect is ``skipped``, as pytest says of an expected failure; an unexpected pass is a
    failure, as it is for the run.
    """
    if verdict.outcome == "passed":
        return "passed"
    if verdict.outcome in HARNESS_FAILED:
        return "error"
    return "failed" if verdict.outcome in NONCONFORMING else "skipped"


def message(verdict: Verdict) -> str:
    """One line: why it did not pass."""
    reason = (verdict.reason or "no reason given").splitlines()[0]
    return f"{verdict.outcome.replace('_', ' ')}: {reason}"


def plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON has it: no NaN, no tuple."""
    return dict(json.loads(to_json(verdict)))


def figures(verdict: Verdict) -> dict[str, str]:
    """Everything measured, as flat names with text for values."""
    data = plain(verdict)
    kept = ("outcome", "architecture", "evidence", "dtype", "first_divergence", "peak_bytes")
    flat = {name: data[name] for name in kept}
    for path, value in (*_flat(data["verdict"]), *_flat(data["metrics"], "metrics")):
        flat[path] = value
    return {name: _text(value) for name, value in flat.items() if value not in (None, "")}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def span(records: Records) -> tuple[datetime, datetime]:
    """When a run began and ended; the end of one that was cut short is estimated from its cases."""
    start = _time(records.header.started)
    if records.footer is not None:
        return start, max(start, _time(records.footer.finished))
    return start, start + timedelta(seconds=sum(v.duration_s for v in records.verdicts))


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.astimezone()
