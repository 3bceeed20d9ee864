"""Comparisons become a verdict: which failure is named first, and what never passes."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from fakes import fake_model
from hypothesis import given
from hypothesis import strategies as st

from conformance.checks import registry
from conformance.checks.base import structure
from conformance.families import Dims
from conformance.records import Comparison, Verdict
from conformance.verdicts import WORST, conclude, describe, first_divergence, margin

JUDGEMENTS = ("structure", "exact", "same_function", "same_precision")


def comparison(site: str | None = "logits", measured: float = 0.0, **fields) -> Comparison:
    fields = {"judgement": "same_function", "prompt": "sixteen", "allowed": 1.0, **fields}
    ok = fields.pop("ok", measured <= fields["allowed"] if fields["allowed"] is not None else True)
    return Comparison(site=site, measured=measured, ok=ok, **fields)


def verdict(*comparisons: Comparison, **metrics: object) -> Verdict:
    return conclude(fake_model("m"), "bridge", "logits", comparisons, metrics, 0.12345)


def test_all_well() -> None:
    found = verdict(comparison(measured=0.25), comparison("blocks.0.attn.q", 0.5), note=1)
    assert found.outcome == "passed"
    assert found.first_divergence is None
    assert found.reason is None
    summary = found.verdict["same_function"]
    assert (summary.compared, summary.failed, summary.margin) == (2, 0, 0.5)
    assert summary.site == "blocks.0.attn.q"
    assert found.metrics == {"note": 1}
    assert found.duration_s == 0.123
    assert found.evidence == "twin"


def test_nothing_compared_is_an_error() -> None:
    found = verdict()
    assert found.outcome == "error"
    assert "compared nothing" in found.reason


def test_nan_fails_and_is_the_worst() -> None:
    bad = comparison("ln_final", math.nan)
    found = verdict(comparison(measured=0.9), bad, comparison(measured=5.0))
    assert not bad.ok
    assert found.outcome == "failed"
    assert found.first_divergence == "ln_final"
    assert found.worst[0] is bad
    assert found.verdict["same_function"].margin == math.inf


def test_one_failure_among_many_passes_fails() -> None:
    found = verdict(*[comparison(measured=0.1)] * 50, comparison("blocks.2.mlp.pre", 1.5))
    assert found.outcome == "failed"
    assert found.first_divergence == "blocks.2.mlp.pre"
    assert found.reason.startswith("1 of 51 comparisons failed; first: blocks.2.mlp.pre on sixteen")


def test_the_reason_says_where_how_large_what_was_allowed_and_why() -> None:
    text = describe(
        comparison(
            "blocks.1.attn.z",
            3e-9,
            allowed=1e-12,
            index=(0, 3, 1, 2),
            reference=0.5,
            subject=0.25,
            bound="floor",
        )
    )
    assert text == (
        "blocks.1.attn.z on sixteen: same function 3.00e-09 at [0, 3, 1, 2] "
        "(reference 0.5, subject 0.25), allowed 1.00e-12 (floor)"
    )


SITES = [
    "embed",
    "blocks.0.resid_pre",
    "blocks.0.attn.scores",
    "blocks.0.attn.pattern",
    "blocks.2.ln1",
    "blocks.10.ln1",
    "ln_final",
    "logits",
]


@given(seed=st.integers(0, 99), first=st.integers(0, len(SITES) - 1))
def test_the_first_divergence_is_first_in_the_order_of_computation(seed: int, first: int) -> None:
    failing = [comparison(s, 2.0) for s in SITES[first:]]
    random.Random(seed).shuffle(failing)
    passing = [comparison(s, 0.0) for s in SITES[:first]]
    assert verdict(*failing, *passing).first_divergence == SITES[first]


def test_a_wrong_formula_comes_before_lost_precision() -> None:
    early = comparison("embed", 2.0, judgement="same_precision")
    late = comparison("logits", 2.0, judgement="same_function")
    assert verdict(early, late).first_divergence == "logits"
    assert verdict(early).first_divergence == "embed"


def test_a_missing_site_is_named_before_numbers() -> None:
    missing = structure("blocks.1.attn.q", "hook never fired", "sixteen")
    found = verdict(comparison("embed", 2.0), missing)
    assert found.first_divergence == "blocks.1.attn.q"
    assert "hook never fired" in found.reason


def test_a_missing_weight_leaves_the_first_wrong_site_named() -> None:
    missing = structure("lm_head.bias", "the port does not have it")
    assert verdict(missing).first_divergence == "lm_head.bias"
    assert verdict(missing, comparison("blocks.0.attn.q", 2.0)).first_divergence == (
        "blocks.0.attn.q"
    )


def test_weights_keep_the_order_of_comparison() -> None:
    names = ["blocks.1.attn.W_Q", "blocks.0.attn.W_Q"]
    failing = [comparison(n, 2.0, judgement="exact", prompt=None) for n in names]
    assert verdict(*failing).first_divergence == names[0]


def test_a_failure_of_the_whole_model_has_no_site() -> None:
    found = verdict(structure(None, "weight processing raised ValueError"))
    assert (found.outcome, found.first_divergence) == ("failed", None)
    assert "the model: weight processing raised ValueError" in found.reason
    assert first_divergence([]) is None


def test_warnings_are_counted_and_do_not_fail() -> None:
    warned = replace(comparison(measured=0.6), note="warning: over twice")
    found = verdict(warned, warned, comparison(), kept=1)
    assert found.outcome == "passed"
    assert found.metrics == {"kept": 1, "warnings": 2}


def test_only_the_worst_are_kept() -> None:
    many = [comparison(measured=i / 100) for i in range(40)]
    random.Random(0).shuffle(many)
    assert [c.measured for c in verdict(*many).worst] == [(39 - i) / 100 for i in range(WORST)]


def test_judgements_are_summarised_apart_in_a_fixed_order() -> None:
    groups = [comparison(judgement=j, measured=0.5) for j in reversed(JUDGEMENTS)]
    assert tuple(verdict(*groups).verdict) == JUDGEMENTS


@pytest.mark.parametrize(
    ("measured", "allowed", "expected"),
    [
        (0.5, 2.0, 0.25),
        (0.0, 0.0, 0.0),
        (1e-300, 0.0, math.inf),
        (math.nan, 1.0, math.inf),
        (math.nan, 0.0, math.inf),
        (math.inf, 1.0, math.inf),
        (3.0, None, -1.0),
    ],
)
def test_margin(measured: float, allowed: float | None, expected: float) -> None:
    assert margin(comparison(measured=measured, allowed=allowed)) == expected


def test_a_number_that_is_only_reported_has_no_margin() -> None:
    found = verdict(comparison(measured=3.0, allowed=None))
    assert found.outcome == "passed"
    assert found.verdict["same_function"].margin is None


@pytest.mark.parametrize("differing", [False, True])
def test_a_library_declines_only_where_layers_differ(differing: bool) -> None:
    class PerLayerGeometryError(ValueError):
        """The library's, by name."""

    alike = Dims(2, 4, 2, 32, 8, 96, 64, 0, (None, None), 8)
    layers = (alike, replace(alike, d_head=16, d_head_v=16))
    sizes = replace(alike, layers=layers) if differing else alike
    check = registry()["weights"]()
    with check.port("reading W_O", "model.W_O", sizes=sizes):
        raise PerLayerGeometryError("heads of another size")
    if differing:
        assert not check.comparisons
        assert "reading W_O" in check.metrics["not_applicable"]
    else:
        (found,) = check.comparisons
        assert (found.ok, found.site) == (False, "model.W_O")
        assert "raised PerLayerGeometryError" in found.note
