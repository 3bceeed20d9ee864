"""The Markdown report, from records alone."""

from __future__ import annotations

from dataclasses import replace

from conformance.records import Comparison, Footer, Header, JudgementSummary, Records, Verdict
from conformance.report.markdown import page

HEADER = Header("2026-01-01T00:00:00+00:00", {"torch": "2"}, "Linux", {}, "models.toml", "0" * 64)
COST = {
    "reference_s": 2.0,
    "reference_peak_bytes": 2**30,
    "subject_s": 1.5,
    "subject_peak_bytes": 2**29,
}
LOGITS = {
    "mse": 1e-12,
    "max_abs": 1e-5,
    "cosine_min": 1.0,
    "kl_rs_max": 1e-11,
    "kl_sr_max": 1e-11,
    "top1_decided_agree": 1.0,
    "top5_overlap": 1.0,
}
GOOD = Verdict(
    "a|b-twin",
    "bridge",
    "logits",
    "passed",
    architecture="LlamaForCausalLM",
    evidence="twin",
    verdict={"same_function": JudgementSummary(2, 0, 1e-14, 1e-12, 0.01, "logits")},
    metrics={"cost": COST, "logits": {"text": LOGITS}},
)
FAILED = Comparison(
    "same_function", "blocks.1.attn.q", "long", 0.5, 1e-12, False, (0, 1), 1.0, 1.5, "floor"
)
BAD = replace(
    GOOD,
    check="activations",
    outcome="failed",
    reason="1 of 2 comparisons failed",
    first_divergence="blocks.1.attn.q",
    verdict={"same_function": JudgementSummary(2, 1, 0.5, 1e-12, 5e11, "blocks.1.attn.q")},
    worst=(FAILED,),
)


def _records(*verdicts: Verdict, finished: bool = True) -> Records:
    footer = Footer("2026-01-01T00:01:00+00:00", 0, 60.0, {}, len(verdicts))
    return Records(HEADER, verdicts, footer if finished else None)


def test_what_is_not_applicable_is_said_with_its_reason() -> None:
    excused = {"not_applicable": {"row sums": "no softmax\nat all"}}
    one = replace(GOOD, check="patterns", metrics=excused)
    text = page(_records(GOOD, one, replace(one, model="other")))
    section = text.split("## Not applicable")[1].split("## ")[0]
    assert "- patterns, row sums: no softmax at all (a|b-twin bridge, other bridge)" in section
    assert "## Not applicable" not in page(_records(GOOD))


def test_a_check_that_does_not_apply_shows_in_its_port_s_row() -> None:
    none = replace(GOOD, check="tokenizer", outcome="not_applicable")
    other = replace(GOOD, subject="hooked", outcome="not_applicable")
    text = page(_records(GOOD, none, other))
    (row,) = [line for line in text.splitlines() if "LlamaForCausalLM" in line]
    assert row.endswith("| bridge | pass | n/a |")


def test_a_run_where_all_conforms_says_so_first() -> None:
    text = page(_records(GOOD))
    assert text.splitlines()[2].startswith("**Every port that was judged conforms**")
    assert "## What does not conform" not in text


def test_a_failure_is_named_first_and_explained() -> None:
    text = page(_records(GOOD, BAD))
    assert text.splitlines()[2] == "**Does not conform: a|b-twin (bridge).**"
    assert "first divergence: blocks.1.attn.q" in text
    assert "conformance run --model 'a|b-twin' --subject bridge --check activations" in text


def test_bars_in_names_do_not_break_tables() -> None:
    row = next(line for line in page(_records(GOOD)).splitlines() if "LlamaForCausalLM" in line)
    assert row.startswith("| a\\|b-twin | LlamaForCausalLM | twin | bridge | pass |")


def test_expected_failures_are_listed_and_do_not_spoil_the_headline() -> None:
    text = page(_records(GOOD, replace(BAD, outcome="xfailed")))
    assert "**Every port" in text
    assert "## Expected failures" in text


def test_cost_and_logit_figures() -> None:
    text = page(_records(GOOD))
    assert "| a\\|b-twin | bridge | 2.0 | 1.00 | 1.5 | 0.50 |" in text
    assert "| 1.0e-12 | 1.0e-05 | 0.0e+00 | 1.0e-11 | 1.0e-11 | 100% | 100.0% |" in text


def test_a_truncated_run_is_not_called_conforming() -> None:
    assert "TRUNCATED" in page(_records(GOOD, finished=False)).splitlines()[2]


def test_not_applicable_subjects_are_named_and_kept_out_of_the_tables() -> None:
    absent = replace(GOOD, subject="hooked", outcome="not_applicable", reason="no such subject")
    text = page(_records(GOOD, absent))
    assert "hooked: not applicable to any of these models (no such subject)" in text
    matrix = text.split("## Verdicts")[1].split("## ")[0]
    assert "hooked" not in matrix
