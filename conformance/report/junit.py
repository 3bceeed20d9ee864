"""JUnit XML: a suite for each model and subject, a case for each check. From records alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from conformance.report.cases import figures, message, span, status
from conformance.report.terminal import explain, ordered, state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conformance.records import Records, Verdict

#: What XML 1.0 cannot hold, not even as a reference; terminals' output is full of it.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAGS: Mapping[str, str] = {"failed": "failure", "error": "error", "skipped": "skipped"}


def junit(records: Records) -> str:
    """The whole document.

    A run that did not reach its end holds one more case, an error that says so.
    """
    start, stop = span(records)
    suites = ElementTree.Element("testsuites", name="conformance")
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in ordered(records.verdicts):
        groups.setdefault((verdict.model, verdict.subject), []).append(verdict)
    for (model, subject), verdicts in groups.items():
        suite = _element(suites, "testsuite", name=f"{model}/{subject}")
        suite.set("timestamp", start.isoformat())
        _properties(suite, {"architecture": verdicts[0].architecture, **_header(records)})
        for verdict in verdicts:
            _case(suite, verdict)
        _count(suite, sum(v.duration_s for v in verdicts))
    if cut := state(records):
        suite = _element(suites, "testsuite", name="conformance/run")
        case = _element(suite, "testcase", classname="conformance", name="run", time="0")
        _element(case, "error", type="incomplete", message=cut).text = _clean(cut)
        _count(suite, 0.0)
    _total(suites, (stop - start).total_seconds())
    ElementTree.indent(suites, " ")
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True).decode()


def _header(records: Records) -> dict[str, str]:
    return {
        **records.header.versions,
        "platform": records.header.platform,
        "models.toml sha256": records.header.models_toml_sha256,
    }


def _case(suite: ElementTree.Element, verdict: Verdict) -> None:
    case = _element(
        suite,
        "testcase",
        classname=f"{verdict.model}/{verdict.subject}",
        name=verdict.check,
        time=f"{verdict.duration_s:.3f}",
    )
    _properties(case, figures(verdict))
    found = status(verdict)
    if found == "passed":
        return
    end = _element(case, _TAGS[found], type=verdict.outcome, message=message(verdict))
    end.text = _clean(explain(verdict))


def _properties(parent: ElementTree.Element, values: Mapping[str, str]) -> None:
    properties = _element(parent, "properties")
    for name, value in values.items():
        _element(properties, "property", name=name, value=value)


def _count(suite: ElementTree.Element, seconds: float) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("time", f"{seconds:.3f}")


def _total(suites: ElementTree.Element, seconds: float) -> None:
    for attribute in ("tests", "failures", "errors", "skipped"):
        suites.set(attribute, str(sum(_numbers(suites, attribute))))
    suites.set("time", f"{seconds:.3f}")


def _numbers(suites: Iterable[ElementTree.Element], attribute: str) -> Sequence[int]:
    return [int(suite.get(attribute, "0")) for suite in suites]


def _element(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        parent, tag, {name: _clean(value) for name, value in attributes.items()}
    )


def _clean(text: str) -> str:
    return _ILLEGAL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
