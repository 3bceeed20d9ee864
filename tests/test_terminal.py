"""What a person reads: from records alone, without colour, at 80 columns."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from conformance.checks.names import CHECKS
from conformance.records import (
    OUTCOMES,
    Comparison,
    Footer,
    Header,
    JudgementSummary,
    Records,
    Stale,
    Verdict,
)
from conformance.report.stale import stale_lines
from conformance.report.terminal import (
    MARKS,
    WORDS,
    abridged,
    counts,
    exit_code,
    explain,
    explanations,
    left_out,
    state,
    summary,
    table,
)


def verdict(model: str = "m", check: str = "logits", **fields: Any) -> Verdict:
    made = {"subject": "bridge", "outcome": "passed", "architecture": "LlamaForCausalLM", **fields}
    return Verdict(model=model, check=check, **made)


def shown(verdicts: list[Verdict], width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table(verdicts, width=width))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def records(*verdicts: Verdict, selected: int | None = None, cut: bool = False) -> Records:
    header = Header("2026", {"torch": "2.13", "python": "3.11"}, "Linux", {}, "models.toml", "a")
    footer = Footer("2026", 0, 75.2, {}, selected)
    return Records(header, verdicts, None if cut else footer)


def test_many_checks_are_lettered_at_80_columns() -> None:
    name = "a-model-with-a-long-name-twin"
    verdicts = [verdict(name, check, outcome="xfailed") for check in CHECKS]
    verdicts += [verdict(name, f"more{i}", outcome="failed") for i in range(20 - len(CHECKS))]
    text = shown(verdicts)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["model", "subject", *"abcdefghijklmnopqrst"]
    marks = "".join(line[30:] for line in lines[1:3]).split()
    assert "".join(marks).replace("bridge", "") == "x" * len(CHECKS) + "F" * (20 - len(CHECKS))
    assert "a=weights" in text
    assert "x=xfail" in text
    assert "F=FAIL" in text
    assert ".=pass" not in text, "only what is seen is explained"
    assert "weights  activations" in shown(verdicts, width=400)


def test_every_outcome_has_a_mark() -> None:
    assert set(MARKS) == set(OUTCOMES)
    assert len(set(MARKS.values())) == len(MARKS)
    assert {len(mark) for mark in MARKS.values()} == {1}


def test_every_outcome_has_a_word() -> None:
    assert set(WORDS) == set(OUTCOMES)
    assert len(set(WORDS.values())) == len(WORDS)
    assert max(map(len, WORDS.values())) <= 7


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        (["passed", "skipped", "not_applicable", "xfailed"], 0),
        (["passed", "failed"], 1),
        (["crashed"], 1),
        (["timeout"], 1),
        (["oom"], 1),
        (["xpassed"], 1),
        (["failed", "error"], 3),
    ],
)
def test_exit_codes(outcomes: list[str], code: int) -> None:
    assert exit_code(outcomes) == code


def test_the_table_reads_at_80_columns() -> None:
    name = "a-model-with-a-name-that-is-rather-long"
    checks = ("weights", "activations", "components", "logits", "loss")
    verdicts = [
        *(verdict(name, check, outcome="timeout") for check in checks),
        *(verdict("gpt2", check) for check in checks[:2]),
        *(verdict("gpt2", check, subject="mine", outcome="failed") for check in checks[:2]),
        verdict("twin", "logits", evidence="twin", outcome="xfailed"),
    ]
    text = shown(verdicts)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["model", "subject", "weights", "activa.", "compon.", "logits", "loss"]
    assert ["gpt2", "(real)", "bridge", "pass", "pass", "-", "-", "-"] in rows
    assert ["mine", "FAIL", "FAIL", "-", "-", "-"] in rows
    assert ["twin", "bridge", "-", "-", "-", "xfail", "-"] in rows
    assert text.count("TIMEOUT") == 5
    assert "activations" in shown(verdicts, width=120)


def test_a_check_that_this_version_does_not_know_has_a_column() -> None:
    assert "novelty" in shown([verdict(check="novelty")])


def test_a_subject_that_applies_nowhere_is_named_once() -> None:
    gone = {
        "subject": "hooked",
        "outcome": "not_applicable",
        "reason": "gone in 4.0\nhint: use 3.9",
    }
    verdicts = [verdict("a"), verdict("a", **gone), verdict("b", **gone)]
    assert "hooked" not in shown(verdicts)
    assert left_out(verdicts) == ["hooked: not applicable to any of these models (gone in 4.0)"]
    partly = [*verdicts, verdict("c", subject="hooked")]
    assert left_out(partly) == []
    assert "n/a" in shown(partly)


FAILED = verdict(
    "llama",
    "activations",
    outcome="failed",
    first_divergence="blocks.0.attn.q",
    verdict={
        "same_function": JudgementSummary(10, 5, math.nan, 1e-12, math.nan, "blocks.0.attn.q"),
        "same_precision": JudgementSummary(10, 0, 1.5, 4.0, 0.375, "blocks.2.z"),
        "structure": JudgementSummary(2, 1, None, None, None, None),
    },
    worst=tuple(
        Comparison(
            "same_function",
            f"blocks.{layer}.attn.q",
            "text",
            math.nan if layer == 0 else 2e-3,
            1e-12,
            False,
            index=(0, layer),
            reference=1.0,
            subject=math.nan,
            bound="8 times what the reference itself moves when it is computed in other orders",
            note="rotated",
        )
        for layer in range(5)
    ),
)


def test_an_explanation_has_every_part() -> None:
    text = explain(FAILED, models="my models.toml")
    lines = text.splitlines()
    assert lines[0] == "FAIL: llama / bridge / activations (LlamaForCausalLM, real weights)"
    assert "  first divergence: blocks.0.attn.q" in lines
    assert "  same function (promoted float64): 5 of 10 comparisons failed" in lines
    assert "      measured nan, allowed 1e-12" in lines
    assert "      measured 0.002, allowed 1e-12: 2e+09 times too much" in lines
    assert "      largest difference at [0, 1]: reference 1, subject nan" in lines
    assert text.count("allowed because: 8 times") == 3
    assert "    and 2 more; the worst are in records.jsonl" in lines
    assert "    closest to its bound: blocks.2.z, measured 1.5 of 4 allowed" in lines
    assert "  structure: 1 of 2 comparisons failed" in lines
    assert "    worst at the whole: measured nothing, allowed nothing" in lines
    command = "--models 'my models.toml' --model llama --subject bridge --check activations"
    assert lines[-2:] == [
        f"    conformance run {command}",
        f"    pytest --pyargs conformance.suite {command}",
    ]
    assert max(map(len, lines[:-2])) <= 80


def test_a_pass_is_explained_without_a_command() -> None:
    text = explain(verdict(evidence="twin"))
    assert text == "pass: m / bridge / logits (LlamaForCausalLM, twin weights)"


def test_what_died_together_is_told_once() -> None:
    crash = {"outcome": "crashed", "reason": "SIGILL\nwhile it was at x"}
    texts = explanations(
        [
            verdict("a", "weights", **crash),
            verdict("b", "weights", outcome="failed", reason="short"),
            verdict("a", "logits", **crash),
            verdict("a", "loss"),
            verdict("b", "logits", outcome="failed", reason="short"),
        ]
    )
    assert [text.splitlines()[0].split(" (")[0] for text in texts] == [
        "CRASH: a / bridge / weights",
        "FAIL: b / bridge / weights",
        "FAIL: b / bridge / logits",
    ]
    assert "  the same: bridge / logits" in texts[0].splitlines()


def test_a_long_reason_is_not_repeated() -> None:
    seen: dict[str, str] = {}
    first = verdict(check="weights", outcome="crashed", reason="SIGILL\nstack")
    second = verdict(check="loss", outcome="crashed", reason="SIGILL\nstack")
    assert abridged(first, seen) == first
    assert abridged(first, seen) == first
    assert abridged(second, seen).reason == "SIGILL\n(all of it under m / bridge / weights)"
    assert abridged(verdict(), seen) == verdict()


def test_counts() -> None:
    assert counts({}) == "0 verdicts"
    assert counts({"passed": 1}) == "1 verdict: 1 passed"
    assert counts({"not_applicable": 2, "passed": 3}) == "5 verdicts: 3 passed, 2 not applicable"


def test_a_run_that_was_cut_short_says_so() -> None:
    whole = records(verdict(), selected=1)
    assert state(whole) is None
    assert (state(records(verdict(), cut=True)) or "").startswith("TRUNCATED")
    stopped = state(records(verdict(), selected=4))
    assert stopped is not None
    assert "3 of 4 verdicts were not reached" in stopped
    assert summary(whole) == [
        "torch 2.13, python 3.11",
        "1 models (1 with trained weights, 0 twins)",
        "1 verdict: 1 passed",
        "finished in 1 min 15 s",
    ]
    assert summary(records(verdict(), cut=True))[-1].startswith("TRUNCATED")


def stale(what: str, line: int | None = 43) -> Stale:
    names = ("embed",) if what == "kinds" else ("gpt2-twin", "opt-*")
    return Stale("known.toml", line, "bridge", "loss", "docs/x.md", what, names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("entry", "no port fails as listed: gpt2-twin, opt-*"),
        ("models", "no longer as listed: gpt2-twin, opt-*"),
        ("kinds", "nothing fails any more at embed"),
    ],
)
def test_what_is_stale_is_said_with_its_place(what: str, said: str) -> None:
    assert stale(what).describe() == f"known.toml:43: bridge / loss: {said} (docs/x.md)"
    assert stale(what, None).describe().startswith("known.toml: bridge")


def test_a_stale_ledger_fails_a_run_that_is_all_right_otherwise() -> None:
    assert exit_code(["passed", "xfailed"], [stale("entry")]) == 1
    assert exit_code(["error"], [stale("entry")]) == 3
    first, *_, hint = stale_lines([stale("entry"), stale("kinds")])
    assert first.startswith("STALE: known.toml:43")
    assert "conformance ledger update" in hint
    assert stale_lines(()) == []
