"""How a verdict is held against the failures that the ledger expects."""

from __future__ import annotations

from importlib import metadata
from typing import Any, cast

import pytest
from fakes import fake_model

from conformance.ledger.judging import expected
from conformance.records import Verdict
from conformance.spec import ExpectedFailure

INSTALLED = metadata.version("transformer-lens")


def entry(**fields: object) -> ExpectedFailure:
    return ExpectedFailure.model_validate(
        {
            "subject": "bridge",
            "check": "logits",
            "reason": "known defect",
            "link": "docs/findings/x.md",
            **fields,
        }
    )


def judged(
    outcome: str, *entries: ExpectedFailure, site: str | None = None, dtype: str = "float32"
) -> Verdict:
    made = {"outcome": outcome, "first_divergence": site, "reason": "it differs"}
    verdict = Verdict("m", "bridge", "logits", **cast("Any", made))
    return expected(verdict, fake_model("m", dtype=dtype, expected_failures=entries))


def test_a_failure_with_the_right_signature_is_expected() -> None:
    verdict = judged("failed", entry(first_divergence="blocks.1.z"), site="blocks.1.z")
    assert verdict.outcome == "xfailed"
    assert verdict.reason == "expected: known defect (docs/findings/x.md)\nit differs"
    assert judged("failed", entry(), site="anywhere").outcome == "xfailed"


def test_a_failure_with_another_signature_stays_one() -> None:
    verdict = judged("failed", entry(first_divergence="blocks.1.z"), site="embed")
    assert verdict.outcome == "failed"
    assert "failed differently from what the ledger expects" in (verdict.reason or "")
    assert "at embed, expected at blocks.1.z (docs/findings/x.md)" in (verdict.reason or "")
    assert judged("failed", entry(first_divergence="blocks.1.z")).outcome == "failed"


def test_any_of_several_signatures_will_do() -> None:
    entries = (entry(first_divergence="a"), entry(first_divergence="b"))
    assert judged("failed", *entries, site="b").outcome == "xfailed"


def test_a_failure_at_a_kind_of_site_that_no_entry_names_stays_one() -> None:
    made = {"outcome": "failed", "first_divergence": "embed", "reason": "it differs"}
    entries = (
        entry(first_divergence="embed", kinds=("embed",)),
        entry(first_divergence="blocks.0.resid_mid", kinds=("resid_mid",)),
    )

    def with_failing(*failing: str, entries: tuple[ExpectedFailure, ...] = entries) -> Verdict:
        fields = {**made, "metrics": {"failing": list(failing)}}
        verdict = Verdict("m", "bridge", "logits", **cast("Any", fields))
        return expected(verdict, fake_model("m", expected_failures=entries))

    assert with_failing("embed", "resid_mid").outcome == "xfailed"
    elsewhere = with_failing("attn.z", "embed")
    assert elsewhere.outcome == "failed"
    assert "does not expect it: at attn.z\nit differs" in (elsewhere.reason or "")
    nowhere = with_failing()
    assert nowhere.outcome == "failed", "it did not load, or failed at no site at all"
    unrestricted = (*entries, entry(first_divergence="ln_final"))
    assert with_failing("attn.z", "embed", entries=unrestricted).outcome == "xfailed"


def test_an_unexpected_pass_is_reported() -> None:
    verdict = judged("passed", entry(first_divergence="blocks.1.z"))
    assert verdict.outcome == "xpassed"
    assert "remove the entry" in (verdict.reason or "")


@pytest.mark.parametrize("outcome", ["error", "crashed", "timeout", "oom", "not_applicable"])
def test_nothing_but_a_failure_is_expected(outcome: str) -> None:
    assert judged(outcome, entry()).outcome == outcome


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"transformer_lens": f"=={INSTALLED}"}, "xfailed"),
        ({"transformer_lens": f"!={INSTALLED}"}, "failed"),
        ({"transformer_lens": ">=1", "transformers": "<1"}, "failed"),
        ({"check": "loss"}, "failed"),
        ({"check": "*"}, "xfailed"),
        ({"subject": "hooked"}, "failed"),
    ],
)
def test_an_entry_applies_only_where_it_says(fields: dict[str, str], outcome: str) -> None:
    verdict = judged("failed", entry(**fields))
    assert (verdict.outcome, verdict.reason) == (
        outcome,
        "it differs" if outcome == "failed" else verdict.reason,
    )


def test_a_package_that_is_missing_matches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert judged("failed", entry(transformers=">=0")).outcome == "failed"


def test_an_entry_of_a_dtype_is_of_no_other() -> None:
    low = entry(dtype=("bfloat16", "float16"))
    assert judged("failed", low, dtype="bfloat16").outcome == "xfailed"
    assert judged("failed", low).outcome == "failed"
    assert judged("passed", low).outcome == "passed"


def test_the_versions_can_be_those_of_an_earlier_run() -> None:
    old = entry(transformer_lens=">=3.9,<4")
    verdict = Verdict("m", "bridge", "logits", "failed")
    model = fake_model("m", expected_failures=(old,))
    assert expected(verdict, model, {"transformer-lens": "3.9.0"}).outcome == "xfailed"
    assert expected(verdict, model, {"transformer-lens": "4.3.0"}).outcome == "failed"
    assert expected(verdict, model, {"transformer-lens": "not installed"}).outcome == "failed"


def test_an_entry_s_dtype_is_that_the_verdict_was_reached_in() -> None:
    bound = entry(dtype=("bfloat16",))
    for reached, outcome in (("bfloat16", "xfailed"), ("float32", "failed"), (None, "failed")):
        made: Any = {"outcome": "failed", "dtype": reached}
        verdict = Verdict("m", "bridge", "logits", **made)
        model = fake_model("m", dtype="float32", expected_failures=(bound,))
        assert expected(verdict, model).outcome == outcome, reached
