"""CTRF, the Common Test Report Format (https://ctrf.io), as JSON. From records alone."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

from conformance.report.cases import message, plain, span, status
from conformance.report.terminal import explain, ordered, state

if TYPE_CHECKING:
    from datetime import datetime

    from conformance.records import Header, Records, Verdict

_SPEC_VERSION = "0.1.0"
_STATUSES = ("passed", "failed", "skipped", "pending", "other")


def ctrf(records: Records) -> str:
    """The whole document.

    CTRF has no word for an error of the harness: it is ``failed`` with ``rawStatus`` ``error``. A
    run that did not reach its end holds one more test, failed, that says so.
    """
    start, stop = span(records)
    tests = [_test(verdict) for verdict in ordered(records.verdicts)]
    if cut := state(records):
        tests.append(
            {
                "name": "conformance/run",
                "status": "failed",
                "rawStatus": "incomplete",
                "duration": 0,
                "message": cut,
            }
        )
    counted = Counter(test["status"] for test in tests)
    summary = {
        "tests": len(tests),
        **{name: counted[name] for name in _STATUSES},
        "suites": len({(v.model, v.subject) for v in records.verdicts}),
        "start": _milliseconds(start),
        "stop": _milliseconds(stop),
    }
    header = records.header
    report = {
        "reportFormat": "CTRF",
        "specVersion": _SPEC_VERSION,
        "reportId": str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(_identity(header)))),
        "timestamp": stop.isoformat(),
        "generatedBy": "lens-conformance",
        "results": {
            "tool": _tool(header),
            "summary": summary,
            "tests": tests,
            "environment": _environment(header),
        },
    }
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)


def _identity(header: Header) -> dict[str, Any]:
    """What identifies a run."""
    return {
        "started": header.started,
        "versions": dict(header.versions),
        "models_toml_sha256": header.models_toml_sha256,
    }


def _tool(header: Header) -> dict[str, str]:
    version = header.versions.get("lens-conformance")
    return {"name": "lens-conformance", **({"version": version} if version else {})}


def _environment(header: Header) -> dict[str, Any]:
    return {
        "appName": "transformer-lens",
        "appVersion": header.versions.get("transformer-lens", "not recorded"),
        "osPlatform": header.platform.split("-")[0].lower(),
        "osVersion": header.platform,
        "extra": {**_identity(header), "seeds": dict(header.seeds)},
    }


def _test(verdict: Verdict) -> dict[str, Any]:
    found = status(verdict)
    data = plain(verdict)
    test: dict[str, Any] = {
        "name": f"{verdict.model}/{verdict.subject}/{verdict.check}",
        "status": "failed" if found == "error" else found,
        "rawStatus": verdict.outcome,
        "duration": max(0, round(verdict.duration_s * 1000)),
        "suite": [verdict.architecture or "unknown", verdict.model, verdict.subject],
        "type": "conformance",
        "tags": [verdict.check, f"{verdict.evidence} weights"],
    }
    if found != "passed":
        test |= {"message": message(verdict), "trace": explain(verdict)}
    kept = ("architecture", "evidence", "dtype", "first_divergence", "peak_bytes", "metrics")
    return {**test, "extra": {name: data[name] for name in kept} | {"judgements": data["verdict"]}}


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
