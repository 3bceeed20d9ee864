"""Versions side by side: what a cell says, and what moving changes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fakes import ROOT
from hypothesis import given
from hypothesis import strategies as st
from made_runs import Row, few, rows, run, verdict, write
from typer.testing import CliRunner

from conformance.cli import app
from conformance.errors import RecordsError
from conformance.records import EXECUTED, NONCONFORMING, OUTCOMES
from conformance.report.side_by_side import markdown
from conformance.report.tables import between_markers, fenced, table
from conformance.sides import Column, changes, migrations, side_by_side
from conformance.standing import STATES, standing

if TYPE_CHECKING:
    from pathlib import Path


def words(*outcomes: str, checks: tuple[str, ...] = ("weights", "logits", "loss")) -> str:
    """What a cell says of one model with these outcomes; '' was not run."""
    made = [
        verdict("m", "bridge", check, outcome)
        for check, outcome in zip(checks, outcomes, strict=True)
        if outcome
    ]
    return standing(made, checks, ["m"]).words


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (("passed", "passed", "passed"), "conforms"),
        (("passed", "not_applicable", "passed"), "conforms; n/a: logits"),
        (("passed", "xfailed", "xfailed"), "known defect: logits, loss"),
        (("failed", "xfailed", "passed"), "fails: weights; known defect: logits"),
        (("crashed", "timeout", "oom"), "crashes: weights; times out: logits; "),
        (("passed", "error", "passed"), "not judged: logits"),
        (("xpassed", "passed", "passed"), "unexpected pass: weights"),
        (("passed", "skipped", "passed"), "skipped: logits"),
        (("passed", "passed", ""), "not run: loss"),
        (("not_applicable", "not_applicable", "not_applicable"), "n/a"),
        (("", "", ""), "not run"),
    ],
)
def test_what_a_cell_says(outcomes: tuple[str, ...], said: str) -> None:
    assert words(*outcomes).startswith(said)
    assert said.endswith(" ") or words(*outcomes) == said


def test_models_are_counted_where_not_all_have_it() -> None:
    made = [
        *(verdict(model, "bridge", "hooks", "xfailed") for model in "abc"),
        verdict("a", "bridge", "logits", "failed"),
        *(verdict(model, "bridge", "logits", "passed") for model in "bc"),
        *(verdict("d", "bridge", check, "not_applicable") for check in ("hooks", "logits")),
    ]
    said = standing(made, models=["a", "b", "c", "d", "e"]).words
    assert said == "fails: logits in 1 of 3 models; known defect: hooks; 3 of 5 models judged"


@few
@given(st.lists(st.sampled_from([*OUTCOMES, ""]), min_size=1, max_size=5))
def test_only_what_wholly_passed_conforms(outcomes: list[str]) -> None:
    made = [
        verdict("m", "bridge", f"c{number}", outcome)
        for number, outcome in enumerate(outcomes)
        if outcome
    ]
    checks = [f"c{number}" for number in range(len(outcomes))]
    found = standing(made, checks, ["m"])
    right = set(outcomes) <= {"passed", "not_applicable"} and "passed" in outcomes
    assert (found.state == "conforms") == right == found.words.startswith("conforms")
    assert found.state in STATES
    if set(outcomes) & (NONCONFORMING - {"xpassed"}):
        assert STATES.index(found.state) < STATES.index("not judged")


OLD = run(
    [
        ("a", "hooked", "logits", "failed"),
        ("a", "hooked", "loss", "passed"),
        ("a", "bridge", "logits", "xfailed"),
        ("a", "bridge", "loss", "passed"),
        ("b", "hooked", "logits", "not_applicable"),
        ("b", "bridge", "logits", "passed"),
    ],
    version="3.9.0",
)
NEW = run(
    [
        ("a", "bridge", "logits", "passed"),
        ("a", "bridge", "loss", "xfailed"),
        ("b", "bridge", "logits", "passed"),
        ("a", "hooked", "logits", "not_applicable"),
    ],
    version="4.10.0",
    started="2026-01-02T00:00:00+00:00",
)


def test_columns_go_from_the_oldest_version_to_the_newest() -> None:
    between = run([("a", "bridge", "loss", "passed")], version="4.3.0")
    sides = side_by_side([NEW, between, OLD])
    labels = [column.label for column in sides.columns]
    assert labels == ["3.9.0 hooked", "3.9.0 bridge", "4.3.0 bridge", "4.10.0 bridge"]
    assert sides.absent == {Column("4.10.0", "hooked"): "because it is not_applicable"}
    assert [new.label for _, new in migrations(sides)] == ["4.10.0 bridge"] * 3


def test_what_a_user_who_migrates_gets() -> None:
    sides = side_by_side([OLD, NEW])
    hooked, bridge, new = sides.columns
    moved = {(c.case.model, c.case.check): c.change for c in changes(sides, hooked, new)}
    assert moved == {("a", "logits"): "better", ("a", "loss"): "worse", ("b", "logits"): "new"}
    moved = {(c.case.model, c.case.check): c.change for c in changes(sides, bridge, new)}
    assert moved[("b", "logits")] == "still right"
    back = {(c.case.model, c.case.check): c.change for c in changes(sides, new, hooked)}
    assert back == {("a", "logits"): "worse", ("a", "loss"): "better", ("b", "logits"): "gone"}


@few
@given(rows(), rows())
def test_every_case_judged_on_either_side_is_counted(old: list[Row], new: list[Row]) -> None:
    sides = side_by_side([run(old, version="1"), run(new, version="2")])
    judged = EXECUTED
    for first, second in migrations(sides):
        found = changes(sides, first, second)
        cases = [c.case for c in found]
        assert len(cases) == len(set(cases))
        expected = {
            case
            for column in (first, second)
            for case, v in sides.verdicts[column].items()
            if v.outcome in judged
        }
        assert set(cases) == expected


def test_a_later_run_of_the_same_version_counts_and_it_is_said() -> None:
    again = run(
        [("a", "hooked", "logits", "passed")],
        version="3.9.0",
        started="2026-01-03T00:00:00+00:00",
        cut=True,
    )
    sides = side_by_side([again, OLD])
    assert sides.standing(sides.columns[0], ["a"]).words == "conforms"
    assert list(sides.notes) == [
        "3.9.0 hooked: 1 verdict is of a later run (2026-01-03T00:00:00+00:00)",
        "the run of 3.9.0 started 2026-01-03T00:00:00+00:00 was cut short",
    ]


def test_the_page_has_both_tables() -> None:
    sides = side_by_side([OLD, NEW])
    page = markdown(sides, "model", migrations(sides))
    assert "| model | 3.9.0 hooked | 3.9.0 bridge | 4.10.0 bridge |" in page
    row = "| a | fails: logits | known defect: logits | known defect: loss |"
    assert row in page
    assert "### From 3.9.0 hooked to 4.10.0 bridge" in page
    assert "| model | gets worse | gets better | newly there, right |" in page
    assert "| a | loss | logits |  |" in page
    assert "1 get worse, 1 get better, 1 are newly there and right" in page


def test_cells_do_not_break_a_table() -> None:
    assert table(["a|b"], [["x\ny <z>"]]) == ["| a\\|b |", "| --- |", "| x y \\<z> |"]
    assert fenced("a\n````\nb")[0] == "`````text"


PAGE = "intro\n<!-- made by conformance compare: begin -->\nold\n"
END = "<!-- made by conformance compare: end -->\nafter\n"


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    once = between_markers(PAGE + END, "new\n", "page")
    assert once.startswith("intro\n")
    assert once.endswith("after\n")
    assert "\nnew\n" in once
    assert "old" not in once
    assert between_markers(once, "new", "page") == once


@pytest.mark.parametrize("text", [PAGE, END, END + PAGE, PAGE + END + PAGE, ""])
def test_a_page_without_marks_is_refused(text: str) -> None:
    with pytest.raises(RecordsError, match="not marked"):
        between_markers(text, "new", "page")


def test_the_results_page_can_be_made_again() -> None:
    page = ROOT.joinpath("docs", "results.md").read_text()
    assert "## Overhead" in between_markers(page, "tables", "docs/results.md")


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    old = write(OLD, tmp_path / "old" / "records.jsonl")
    return [str(old.parent), str(write(NEW, tmp_path / "new.jsonl"))]


def invoke(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", *args], env={"COLUMNS": "80"})
    return result.exit_code, result.output


def test_the_text_reads_at_80_columns(files: list[str]) -> None:
    code, output = invoke(*files)
    assert code == 0
    tables = output.split("run of")[0].splitlines()
    assert max(map(len, tables)) <= 80
    assert "GPT2LMHeadModel" in output
    assert "From 3.9.0 hooked to 4.10.0 bridge" in output
    assert "4.10.0 hooked: applies to none of these models" in output


def test_json_holds_cells_and_changes(files: list[str]) -> None:
    code, output = invoke(*files, "--by", "model", "--format", "json")
    assert code == 0
    found = json.loads(output)
    assert [c["label"] for c in found["columns"]] == [
        "3.9.0 hooked",
        "3.9.0 bridge",
        "4.10.0 bridge",
    ]
    cell = found["rows"]["a"]["cells"]["3.9.0 hooked"]
    assert cell["state"] == "fails"
    assert cell["checks"] == {"fails": {"logits": 1}, "conforms": {"loss": 1}}
    assert {c["change"] for c in found["moves"][0]["changes"]} == {"worse", "better", "new"}


def test_moves_can_be_chosen(files: list[str]) -> None:
    _, output = invoke(*files, "--from", "3.9.0 hooked", "--to", "3.9.0 bridge")
    assert output.count("\nFrom ") == 1
    assert "From 3.9.0 hooked to 3.9.0 bridge" in output
    code, output = invoke(*files, "--from", "3.9.0 mine")
    assert code == 2
    assert '"3.9.0 bridge"' in output


def test_tables_are_put_into_a_page(files: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE + END)
    assert invoke(*files, "--format", "markdown", "--details", "--into", str(page))[0] == 0
    made = page.read_text()
    assert made.startswith("intro\n")
    assert made.index("## Side by side") < made.index("## TransformerLens 3.9.0")
    assert "### Logits" in made
    assert invoke(*files, "--into", str(page))[0] == 2
    assert invoke(str(tmp_path / "absent"))[0] == 2


def test_no_tensor_library_is_imported(files: list[str], tmp_path: Path) -> None:
    kept, new = files
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom conformance.cli import app\n"
        "def go(*args): CliRunner().invoke(app, args, catch_exceptions=False)\n"
        f"go('compare', {kept!r}, {new!r})\ngo('gate', {new!r}, '--baseline', {kept!r})\n"
        "for form in ('junit', 'ctrf', 'markdown', 'summary'):\n"
        f"    go('report', {new!r}, '--format', form)\n"
        "names = ('torch', 'transformers', 'transformer_lens', 'numpy')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
