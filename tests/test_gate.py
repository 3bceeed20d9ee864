"""The gate finds what got worse, whatever the order of lines, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fakes import models_toml, run_suite
from hypothesis import assume, given
from hypothesis import strategies as st
from made_runs import Row, few, rows, run, verdict, write
from typer.testing import CliRunner

from conformance.cli import app
from conformance.gate import RULES, Finding, Run, gate
from conformance.records import EXECUTED, OUTCOMES, Footer, Records, Stale, Verdict
from conformance.report.gating import lines

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CALM = tuple(outcome for outcome in OUTCOMES if outcome != "xpassed")


def found(new: Records, kept: Records) -> list[Finding]:
    return gate(Run("run", new), Run("baseline", kept))


def kinds(new: Records, kept: Records) -> list[str]:
    return [finding.kind for finding in found(new, kept)]


def judges(made: Sequence[Row]) -> bool:
    return any(row[3] in EXECUTED for row in made)


@few
@given(rows(CALM))
def test_a_run_against_itself_is_nothing(made: list[Row]) -> None:
    assume(judges(made))
    assert found(run(made), run(made)) == []


@few
@given(rows())
def test_an_unexpected_pass_blocks_even_if_it_was_kept(made: list[Row]) -> None:
    assume(judges(made))
    passes = {row[:3] for row in made if row[3] == "xpassed"}
    assert {f.case for f in found(run(made), run(made)) if f.blocks} == passes


@few
@given(rows(), st.data())
def test_a_line_that_was_executed_and_is_gone_blocks(made: list[Row], data: st.DataObject) -> None:
    executed = [row for row in made if row[3] in EXECUTED]
    assume(executed)
    dropped = data.draw(st.sampled_from(executed))
    fewer = [row for row in made if row != dropped]
    blocking = {f.case for f in found(run(fewer), run(made)) if f.blocks}
    assert dropped[:3] in blocking
    # Also where the footer tells of it and the rest of the file does not.
    kept = run(made)
    damaged = replace(kept, verdicts=run(fewer).verdicts)
    assert "INCOMPLETE" in kinds(damaged, kept)


@few
@given(rows(), rows(), st.randoms(use_true_random=False))
def test_the_order_of_lines_does_not_matter(
    new: list[Row], kept: list[Row], chance: random.Random
) -> None:
    before = found(run(new), run(kept))
    for made in (new, kept):
        chance.shuffle(made)
    assert found(run(new), run(kept)) == before


@few
@given(rows(), rows())
def test_no_case_is_told_twice(new: list[Row], kept: list[Row]) -> None:
    cases = [finding.case for finding in found(run(new), run(kept)) if finding.case]
    assert len(cases) == len(set(cases))


@pytest.mark.parametrize("now", sorted({*OUTCOMES, "missing"} - {"passed"}))
def test_what_passed_and_does_not_any_more_blocks(now: str) -> None:
    other = ("m", "bridge", "loss", "passed")
    new = [other] if now == "missing" else [other, ("m", "bridge", "logits", now)]
    (finding,) = found(run(new), run([other, ("m", "bridge", "logits", "passed")]))
    expected = {"xfailed": "known defect", "xpassed": "UNEXPECTED PASS"}.get(now, "REGRESSION")
    assert finding.kind == expected
    assert finding.blocks == (now != "xfailed")
    assert finding.change == f"passed -> {now.replace('_', ' ')}"


@pytest.mark.parametrize(
    ("before", "now", "kind"),
    [
        ("xfailed", "failed", "NEW FAILURE"),
        ("skipped", "crashed", "NEW FAILURE"),
        ("not_applicable", "error", "NEW FAILURE"),
        ("missing", "failed", "NEW FAILURE"),
        ("failed", "crashed", "ANOTHER FAILURE"),
        ("failed", "error", "ANOTHER FAILURE"),
        ("failed", "skipped", "NOT EXECUTED"),
        ("xfailed", "missing", "NOT EXECUTED"),
        ("failed", "xfailed", "known defect"),
        ("failed", "passed", "better"),
        ("xfailed", "passed", "better"),
        ("not_applicable", "passed", "better"),
        ("missing", "passed", "new"),
        ("missing", "xfailed", "new"),
        ("skipped", "missing", None),
    ],
)
def test_each_change_has_its_kind(before: str, now: str, kind: str | None) -> None:
    def side(outcome: str) -> Records:
        other = ("m", "bridge", "loss", "passed")
        return run([other] if outcome == "missing" else [other, ("m", "bridge", "logits", outcome)])

    assert kinds(side(now), side(before)) == ([] if kind is None else [kind])


def test_a_failure_elsewhere_is_another_one() -> None:
    kept = verdict("m", "bridge", "logits", "failed")
    moved = replace(kept, first_divergence="blocks.0.attn.k")
    assert kinds(run([moved]), run([kept])) == ["ANOTHER FAILURE"]


def test_a_run_that_did_not_reach_its_end_blocks() -> None:
    made = [("m", "bridge", "logits", "passed")]
    for side in (run(made, cut=True), run(made, selected=3)):
        assert kinds(side, run(made)) == ["INCOMPLETE"]
        assert kinds(run(made), side) == ["INCOMPLETE"]


def test_a_file_at_odds_with_itself_blocks() -> None:
    made = run([("m", "bridge", "logits", "passed")])
    twice = replace(made, verdicts=made.verdicts * 2)
    assert "INCOMPLETE" in kinds(twice, made)
    assert made.footer is not None
    forged = replace(made, footer=replace(made.footer, outcomes={"failed": 1}))
    assert "INCOMPLETE" in kinds(forged, made)
    assert isinstance(made.footer, Footer)


def test_a_baseline_that_judged_nothing_blocks() -> None:
    nothing = run([("m", "bridge", "logits", "skipped")])
    assert kinds(nothing, nothing) == ["INCOMPLETE"]


def test_a_rule_can_be_added() -> None:
    def strict(run: Run, baseline: Run) -> Iterator[Finding]:
        yield Finding("STALE ENTRY", f"of {len(run.verdicts)}")

    made = run([("m", "bridge", "logits", "passed")])
    both = gate(Run("run", made), Run("baseline", made), [*RULES, strict])
    assert [finding.kind for finding in both] == ["STALE ENTRY"]


def told(new: Sequence[Verdict | Row], kept: Sequence[Verdict | Row], **more: str) -> list[str]:
    sides = Run("run", run(new, **more)), Run("baseline", run(kept))  # type: ignore[arg-type]
    return lines(gate(*sides), *sides)


def test_the_text_says_what_changed_and_how_to_see_it_again() -> None:
    text = told(
        [
            ("a", "bridge", "weights", "passed"),
            ("a", "bridge", "logits", "failed"),
            ("c", "bridge", "loss", "passed"),
            ("d", "bridge", "loss", "failed"),
        ],
        [
            ("a", "bridge", "weights", "passed"),
            ("a", "bridge", "logits", "passed"),
            ("b", "bridge", "logits", "passed"),
            ("b", "bridge", "loss", "passed"),
            ("c", "bridge", "loss", "xfailed"),
            ("d", "bridge", "loss", "failed"),
        ],
        version="4.4.0",
    )
    assert text == [
        "baseline and run differ: transformer-lens 4.3.0 -> 4.4.0",
        "",
        "REGRESSION: a / bridge / logits: passed -> failed",
        "  first divergence: blocks.1.attn.q",
        "  1 of 9 comparisons failed",
        "  conformance run --model a --subject bridge --check logits",
        "",
        "REGRESSION: b / bridge / 2 checks: logits, loss: passed -> missing",
        "  conformance run --model b --subject bridge --check logits --check loss",
        "",
        "better: 1 verdict",
        "  c / bridge / loss: xfailed -> passed",
        "",
        "as in the baseline, 1 verdict did not pass; that alone does not block",
        "gate: FAILED: 3 regressions (4 verdicts against 6 of the baseline)",
    ]


def test_the_last_line_counts_what_blocks() -> None:
    short = run([("m", "bridge", "loss", "xpassed"), ("n", "bridge", "loss", "failed")], selected=3)
    sides = Run("run", short), Run("baseline", run([("m", "bridge", "loss", "xfailed")]))
    assert lines(gate(*sides), *sides)[-1] == (
        "gate: FAILED: 1 problem of the files, 1 new failure, 1 unexpected pass "
        "(2 verdicts against 1 of the baseline)"
    )


def test_what_did_not_change_is_not_told() -> None:
    made = [("a", "bridge", check, "passed") for check in ("weights", "loss")]
    assert told(made, made) == [
        "gate: passed: nothing blocks (2 verdicts against 2 of the baseline)"
    ]


def test_a_new_known_defect_is_told_with_its_reason() -> None:
    text = told([("a", "bridge", "loss", "xfailed")], [("a", "bridge", "loss", "passed")])
    assert text[:3] == [
        "now listed as a known defect: 1 verdict",
        "  a / bridge / loss: passed -> xfailed",
        "    expected: known (docs/findings/1.md)",
    ]


def test_many_improvements_are_cut_short() -> None:
    names = [f"m{number:02}" for number in range(30)]
    text = told(
        [(name, "bridge", "loss", "passed") for name in names],
        [(name, "bridge", "loss", "failed") for name in names],
    )
    assert text[0] == "better: 30 verdicts"
    assert "  and 20 verdicts more" in text
    assert len(text) < 15


# --- the command -----------------------------------------------------------------------------


def invoke(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["gate", *map(str, args)])
    return result.exit_code, result.output


GOOD = run([("m", "bridge", "loss", "passed"), ("m", "bridge", "logits", "passed")])
BAD = run([("m", "bridge", "loss", "passed"), ("m", "bridge", "logits", "failed")])


def test_exit_codes(tmp_path: Path) -> None:
    good = write(GOOD, tmp_path / "good" / "records.jsonl")
    bad = write(BAD, tmp_path / "bad.jsonl")
    assert invoke(good.parent, "--baseline", good)[0] == 0
    assert invoke(bad, "--baseline", good)[0] == 1
    assert invoke(good, "--baseline", bad)[0] == 0
    assert invoke(bad, "--baseline", good, "--check", "loss")[0] == 0
    assert invoke(bad, "--baseline", good, "--model", "m*", "--subject", "bridge")[0] == 1
    assert invoke(bad, "--baseline", good, "--check", "nonsense")[0] == 2
    assert invoke(bad, "--baseline", tmp_path / "absent")[0] == 2
    assert invoke(bad)[0] == 2


@pytest.mark.parametrize("side", ["run", "baseline"])
@pytest.mark.parametrize("damage", ["cut", "middle", "empty"])
def test_a_damaged_file_of_either_side_blocks(tmp_path: Path, side: str, damage: str) -> None:
    files = {name: write(GOOD, tmp_path / f"{name}.jsonl") for name in ("run", "baseline")}
    text = files[side].read_text()
    middle = len(text) // 2
    files[side].write_text(
        {"cut": text[:middle], "middle": text[:middle] + text[middle + 9 :], "empty": ""}[damage]
    )
    code, output = invoke(files["run"], "--baseline", files["baseline"])
    assert code == 1
    assert f"INCOMPLETE: the {side}" in output


def test_a_real_run_against_a_kept_one(tmp_path: Path) -> None:
    for folder, names in (("kept", ["ok", "ok-more"]), ("new", ["ok", "sub.fail"])):
        tmp_path.joinpath(folder).mkdir()
        tmp_path.joinpath(folder, "models.toml").write_text(models_toml(names))
        run_suite(tmp_path / folder, "--check", "loss")
    outs = {name: tmp_path / name / "conformance-out" for name in ("kept", "new")}
    code, output = invoke(outs["new"], "--baseline", outs["kept"])
    assert code == 1
    assert "REGRESSION: ok-more / bridge / loss: passed -> missing" in output
    assert "NEW FAILURE: sub.fail / bridge / loss: missing -> failed" in output
    models = tmp_path / "new" / "models.toml"
    again = f"conformance run --models {models} --model sub.fail --subject bridge --check loss"
    assert again in output


# --- the ledger and the list of architectures -------------------------------------------------


def test_a_stale_entry_of_the_ledger_blocks() -> None:
    stale = Stale("known.toml", 43, "bridge", "loss", "docs/x.md", "entry", ("gpt2",))
    assert GOOD.footer is not None
    made = replace(GOOD, footer=replace(GOOD.footer, stale=(stale,)))
    (finding,) = found(made, GOOD)
    assert (finding.kind, finding.blocks) == ("STALE ENTRY", True)
    said = "known.toml:43: bridge / loss: no port fails as listed: gpt2 (docs/x.md)"
    assert finding.change == said
    assert found(GOOD, made) == []


GAP = '[[gap]]\narchitectures = ["Gpt*"]\nreason = "no twin yet"\n'


@pytest.fixture
def covering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a file that lists its gaps, where two architectures are supported."""
    from conformance import coverage

    supported = coverage.Supported("4.3.0", frozenset({"GPT2LMHeadModel", "GptJ"}), frozenset())
    monkeypatch.setattr(coverage, "installed", lambda: supported)
    models = tmp_path / "models.toml"
    models.write_text(models_toml(["m"]) + GAP)
    header = replace(GOOD.header, models_toml=str(models))
    return write(replace(GOOD, header=header), tmp_path / "records.jsonl")


def test_an_uncovered_architecture_blocks(covering: Path) -> None:
    assert invoke(covering, "--baseline", covering)[0] == 0
    models = covering.parent / "models.toml"
    models.write_text(models.read_text().replace("Gpt*", "GptX"))
    code, output = invoke(covering, "--baseline", covering)
    assert code == 1
    assert "UNCOVERED: GptJ: transformer-lens 4.3.0 supports it" in output
    assert "gate: FAILED: 1 architecture not covered" in output
    assert invoke(covering, "--baseline", covering, "--no-coverage")[0] == 0
    assert invoke(covering, "--baseline", covering, "--model", "m")[0] == 0
    assert invoke(covering, "--baseline", covering, "--model", "m", "--coverage")[0] == 1


def test_a_file_that_lists_no_gaps_claims_no_coverage(covering: Path) -> None:
    models = covering.parent / "models.toml"
    models.write_text(models_toml(["m"]))
    assert invoke(covering, "--baseline", covering)[0] == 0
    assert invoke(covering, "--baseline", covering, "--coverage")[0] == 1


def test_coverage_is_of_the_version_that_ran(
    covering: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance import coverage

    other = coverage.Supported("5.0.0", frozenset({"New"}), frozenset())
    monkeypatch.setattr(coverage, "installed", lambda: other)
    code, output = invoke(covering, "--baseline", covering)
    assert code == 0
    assert "coverage not asked: 5.0.0 is installed, the run had 4.3.0" in output
    assert invoke(covering, "--baseline", covering, "--coverage")[0] == 2
