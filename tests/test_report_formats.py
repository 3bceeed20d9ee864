"""What other tools read of a run: structure, counts, and that nothing passes that did not."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import Row, few, rows, run, verdict, write
from typer.testing import CliRunner

from conformance.cli import app
from conformance.gate import Run
from conformance.records import OUTCOMES, JudgementSummary, Records
from conformance.report.badge import badges
from conformance.report.compatibility import compatibility
from conformance.report.ctrf import ctrf
from conformance.report.junit import junit
from conformance.report.step_summary import step_summary
from conformance.sides import side_by_side

if TYPE_CHECKING:
    from pathlib import Path

EVERY = run([("m", "bridge", f"check-{outcome}", outcome) for outcome in OUTCOMES])
BAD = ("failed", "crashed", "timeout", "oom", "xpassed")
SKIPPED = ("skipped", "not_applicable", "xfailed")

# --- JUnit -----------------------------------------------------------------------------------


def cases(records: Records) -> dict[tuple[str, str], ElementTree.Element]:
    found = ElementTree.fromstring(junit(records)).iter("testcase")
    return {(case.get("classname", ""), case.get("name", "")): case for case in found}


def ended(case: ElementTree.Element) -> str:
    ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
    assert len(ends) <= 1
    return ends[0] if ends else "passed"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_junit_knows_each_outcome_and_only_a_pass_passes(outcome: str) -> None:
    case = cases(EVERY)["m/bridge", f"check-{outcome}"]
    expected = {
        "passed": "passed",
        "error": "error",
        **dict.fromkeys(BAD, "failure"),
        **dict.fromkeys(SKIPPED, "skipped"),
    }
    assert ended(case) == expected[outcome]
    if outcome != "passed":
        end = case.find(expected[outcome])
        assert end is not None
        assert end.get("type") == outcome
        assert end.get("message")
        assert end.text


def test_junit_says_why() -> None:
    failure = cases(EVERY)["m/bridge", "check-failed"].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert "first divergence: blocks.1.attn.q" in failure.text
    assert failure.get("message") == "failed: 1 of 9 comparisons failed"
    known = cases(EVERY)["m/bridge", "check-xfailed"].find("skipped")
    assert known is not None
    assert known.get("message") == "xfailed: expected: known (docs/findings/1.md)"


def test_junit_holds_metrics_as_properties() -> None:
    made = verdict(
        "m",
        "bridge",
        "logits",
        "passed",
        verdict={"same_function": JudgementSummary(4, 0, math.nan, 1e-12, 0.5, "logits")},
        metrics={"logits": {"text": {"mse": 1e-9}}, "sites": 7, "absent": ["x"]},
    )
    case = cases(run([made]))["m/bridge", "logits"]
    found = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert found["metrics.logits.text.mse"] == "1e-09"
    assert found["metrics.sites"] == "7"
    assert found["metrics.absent"] == '["x"]'
    assert found["same_function.margin"] == "0.5"
    assert found["same_function.measured"] == "nan"


@few
@given(rows(), st.booleans())
def test_junit_counts_what_it_holds(made: list[Row], cut: bool) -> None:
    root = ElementTree.fromstring(junit(run(made, cut=cut)))
    found = Counter(ended(case) for case in root.iter("testcase"))
    assert int(root.get("tests", "")) == len(made) + cut == sum(found.values())
    assert int(root.get("failures", "")) == found["failure"]
    assert int(root.get("errors", "")) == found["error"]
    assert int(root.get("skipped", "")) == found["skipped"]
    assert found["passed"] == sum(row[3] == "passed" for row in made)
    for suite in root:
        assert int(suite.get("tests", "")) == len(suite.findall("testcase"))


@few
@given(st.text())
def test_junit_can_be_read_whatever_a_reason_holds(reason: str) -> None:
    made = verdict("m", "bridge", "loss", "crashed", reason=f"x{reason}\x1b[1m\x00\ud800")
    (case,) = cases(run([made])).values()
    assert ended(case) == "failure"


# --- CTRF ------------------------------------------------------------------------------------

CTRF_STATUSES = ["passed", "failed", "skipped", "pending", "other"]
TEXT, COUNT, OBJECT = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


#: What version 0.1 of the format says of the parts that are written here.
CTRF = closed(
    "reportFormat specVersion results",
    reportFormat={"const": "CTRF"},
    specVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    reportId={"type": "string", "format": "uuid"},
    timestamp={"type": "string", "format": "date-time"},
    generatedBy=TEXT,
    results=closed(
        "tool summary tests",
        tool=closed("name", name={"type": "string", "minLength": 1}, version=TEXT),
        summary=closed(
            "tests passed failed skipped pending other start stop",
            **dict.fromkeys(("tests", "suites", "start", "stop", *CTRF_STATUSES), COUNT),
        ),
        tests={
            "type": "array",
            "items": closed(
                "name status duration",
                name={"type": "string", "minLength": 1},
                status={"enum": CTRF_STATUSES},
                rawStatus=TEXT,
                duration=COUNT,
                suite={"type": "array", "minItems": 1, "items": TEXT},
                type=TEXT,
                tags={"type": "array", "items": TEXT},
                message=TEXT,
                trace=TEXT,
                extra=OBJECT,
            ),
        },
        environment=closed(
            "", appName=TEXT, appVersion=TEXT, osPlatform=TEXT, osVersion=TEXT, extra=OBJECT
        ),
    ),
)


def strict(text: str) -> Any:
    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is no JSON")

    return json.loads(text, parse_constant=refuse)


@few
@given(rows(), st.booleans())
def test_ctrf_is_what_the_format_says(made: list[Row], cut: bool) -> None:
    report = strict(ctrf(run(made, cut=cut)))
    jsonschema.validate(report, CTRF, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    summary, tests = report["results"]["summary"], report["results"]["tests"]
    found = Counter(test["status"] for test in tests)
    assert summary["tests"] == len(tests) == len(made) + cut
    assert {name: summary[name] for name in found} == found
    assert found["passed"] == sum(row[3] == "passed" for row in made)
    assert summary["start"] <= summary["stop"]
    assert len({test["name"] for test in tests}) == len(tests)


def test_ctrf_knows_each_outcome() -> None:
    tests = strict(ctrf(EVERY))["results"]["tests"]
    found = {test["rawStatus"]: test for test in tests}
    assert found["passed"]["status"] == "passed"
    assert {found[o]["status"] for o in (*BAD, "error")} == {"failed"}
    assert {found[o]["status"] for o in SKIPPED} == {"skipped"}
    assert all(found[outcome]["message"] for outcome in OUTCOMES if outcome != "passed")
    assert "first divergence: blocks.1.attn.q" in found["failed"]["trace"]
    assert found["failed"]["suite"] == ["GPT2LMHeadModel", "m", "bridge"]


def test_ctrf_holds_no_number_that_json_has_not() -> None:
    made = verdict("m", "bridge", "loss", "failed", metrics={"mean": math.inf})
    (test,) = strict(ctrf(run([made])))["results"]["tests"]
    assert test["extra"]["metrics"] == {"mean": "inf"}


def test_the_same_records_make_the_same_report() -> None:
    assert ctrf(EVERY) == ctrf(EVERY)
    assert junit(EVERY) == junit(EVERY)


# --- badges and tables -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "message", "colour"),
    [
        (("passed", "passed"), "4.3.0 bridge: conforms", "brightgreen"),
        (("passed", "xfailed"), "4.3.0 bridge: known defect (1 check)", "yellow"),
        (("failed", "failed"), "4.3.0 bridge: fails (2 checks)", "red"),
        (("passed", "error"), "4.3.0 bridge: not judged (1 check)", "lightgrey"),
        (("passed", "skipped"), "4.3.0 bridge: skipped (1 check)", "lightgrey"),
        (("xpassed", "passed"), "4.3.0 bridge: unexpected pass (1 check)", "orange"),
    ],
)
def test_a_badge_says_the_worst(outcomes: tuple[str, str], message: str, colour: str) -> None:
    made = [("m", "bridge", c, o) for c, o in zip(("logits", "loss"), outcomes, strict=True)]
    (badge,) = map(json.loads, badges(side_by_side([run(made)])).values())
    assert badge["schemaVersion"] == 1
    assert badge["label"] == "GPT2LMHeadModel"
    assert (badge["message"], badge["color"]) == (message, colour)
    assert set(badge) <= {"schemaVersion", "label", "message", "color", "isError"}
    assert badge.get("isError", False) == (colour == "red")


def test_a_badge_names_each_subject_and_the_worst_colours_it() -> None:
    made = [("m", "bridge", "loss", "passed"), ("m", "hooked", "loss", "failed")]
    (badge,) = map(json.loads, badges(side_by_side([run(made)])).values())
    assert badge["message"] == "4.3.0 hooked: fails (1 check); 4.3.0 bridge: conforms"
    assert badge["color"] == "red"


def test_an_architecture_of_which_nothing_applies_is_not_judged() -> None:
    other = verdict("x", "bridge", "loss", "not_applicable", architecture="Other")
    made = badges(side_by_side([run([("m", "bridge", "loss", "passed"), other])]))
    assert json.loads(made["Other"])["message"] == "not judged"


def test_the_compatibility_table_names_known_defects() -> None:
    real = verdict("r", "bridge", "loss", "passed", evidence="real")
    page = compatibility(side_by_side([run([real, ("m", "bridge", "loss", "xfailed")])]))
    row = "| GPT2LMHeadModel | 1 real, 1 twin | known defect: loss in 1 of 2 models |"
    assert row in page.splitlines()
    assert "- known (docs/findings/1.md): GPT2LMHeadModel" in page.splitlines()


# --- the step summary ------------------------------------------------------------------------


def test_what_got_worse_comes_first() -> None:
    kept = run([("a", "bridge", "loss", "passed"), ("b", "bridge", "loss", "failed")])
    new = run([("a", "bridge", "loss", "failed"), ("b", "bridge", "loss", "failed")])
    text = step_summary(Run("run", new), Run("baseline", kept))
    order = [
        "**Does not conform: 2 of 2 verdicts. 1 change for the worse.**",
        "## What got worse",
        "REGRESSION: a / bridge / loss: passed -> failed",
        "conformance run --model a --subject bridge --check loss",
        "## What does not conform",
        "FAIL: b / bridge / loss",
        "## By architecture",
        "| GPT2LMHeadModel | fails: loss |",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "Truncated" not in text
    assert text.count("a / bridge / loss") == 1


def test_a_run_that_was_cut_short_is_not_called_conforming() -> None:
    text = step_summary(Run("run", run([("a", "bridge", "loss", "passed")], cut=True)))
    assert "**TRUNCATED" in text
    assert "conforms, known" not in text


def test_a_summary_of_much_stays_under_one_mebibyte_and_says_what_is_left_out() -> None:
    reason = "```\n" + "é" * 20_000 + "\ud800"
    made = [
        verdict(f"m{n}", "bridge", "loss", "crashed", reason=f"{n}{reason}") for n in range(400)
    ]
    text = step_summary(Run("run", run(made)))
    size = len(text.encode(errors="backslashreplace"))
    assert 2**19 < size < 2**20
    assert "**Truncated** to stay under" in text
    shown = text.count("CRASH: ")
    assert f"{400 - shown} failures" in text
    assert text.count("````text") == shown


@few
@given(rows(), st.integers(2048, 6000))
def test_the_limit_holds(made: list[Row], limit: int) -> None:
    text = step_summary(Run("run", run(made)), Run("baseline", run([])), limit)
    assert len(text.encode()) <= limit


# --- the command -----------------------------------------------------------------------------


def invoke(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *map(str, args)])
    return result.exit_code, result.output


def test_the_command_writes_each_format(tmp_path: Path) -> None:
    folder = write(EVERY, tmp_path / "out" / "records.jsonl").parent
    code, output = invoke(folder, "--format", "junit")
    assert code == 0
    assert ElementTree.fromstring(output).tag == "testsuites"
    for form in ("junit", "ctrf", "markdown", "summary"):
        assert invoke(folder, "--format", form, "--out", tmp_path / "deep" / form)[0] == 0
        assert tmp_path.joinpath("deep", form).read_text().endswith("\n")
    assert invoke(folder, "--format", "badge", "--out", tmp_path / "badges")[0] == 0
    assert [p.name for p in (tmp_path / "badges").iterdir()] == ["GPT2LMHeadModel.json"]


def test_what_the_command_cannot_do_is_a_usage_error(tmp_path: Path) -> None:
    folder = write(EVERY, tmp_path / "out" / "records.jsonl").parent
    assert invoke(folder, "--format", "badge")[0] == 2
    assert invoke(folder, "--format", "junit", "--baseline", folder)[0] == 2
    assert invoke(folder, "--baseline", folder)[0] == 2
    assert invoke(folder, "--format", "pdf")[0] == 2
    code, output = invoke(tmp_path / "absent", "--format", "ctrf")
    assert code == 2
    assert "hint:" in output
    code, output = invoke(folder, "--format", "ctrf", "--out", folder)
    assert code == 2
    assert "Is a directory" in output
