"""``patterns``, ``lens`` and ``heads`` of an encoder and a decoder, and T5's relative positions."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins

from conformance.diagnose.facts import Buckets
from conformance.faults import CATALOGUE

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench

PROMPTS = ("sixteen", "padded_left")
#: TransformerLens 3.9, in which T5 does not run with this transformers (docs/findings/127).
OLD = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
t5_runs = pytest.mark.skipif(OLD, reason="T5 does not run in 3.9")


def _kinds(record: dict[str, Any]) -> set[str]:
    """The kinds of site of the worst failures."""
    return {c["site"].split(".", 2)[-1] for c in record["worst"] if not c["ok"]}


@functools.cache
def _judged(twin: str, cache: Path) -> dict[str, dict[str, Any]]:
    model = twins.twin_model(twin, prompts=PROMPTS)
    return twins.judge(model, "bridge", cache, checks=("patterns", "lens", "heads"))


def test_a_right_stack_passes(twin_cache: Path) -> None:
    """Of T5Gemma only what shows the pattern for scores fails: docs/findings/004."""
    record = _judged("t5gemma", twin_cache)["patterns"]
    assert _kinds(record) == {"cross_attn.scores", "cross_attn.pattern"}
    assert record["verdict"]["exact"]["failed"] == 2
    assert record["verdict"]["exact"]["compared"] > 12


def test_sums_and_heads_of_two_stacks_pass(twin_cache: Path) -> None:
    """By hand; what the cache's functions do is docs/findings/148 (and 149, in 3.9)."""
    record = _judged("mbart", twin_cache)["lens"]
    assert record["verdict"]["same_function"]["failed"] == 0
    assert record["verdict"]["same_function"]["compared"] >= 17
    failing = {c["site"] for c in record["worst"] if not c["ok"]}
    assert all(site.startswith("cache.") or site.endswith((".QK", ".OV")) for site in failing)
    assert "set_use_attn_result" in record["metrics"]["not_applicable"]


def test_a_decoders_heads_are_scored(twin_cache: Path) -> None:
    record = _judged("mbart", twin_cache)["heads"]
    assert record["verdict"]["same_function"] == {
        **record["verdict"]["same_function"],
        "compared": 4,
        "failed": 0,
    }
    assert record["first_divergence"] == "detect_head"
    assert record["metrics"]["induction"]["reference"] == record["metrics"]["induction"]["subject"]


def test_norms_in_the_stream_leave_no_sum(twin_cache: Path) -> None:
    record = _judged("bart", twin_cache)["lens"]
    assert "no sums of parts" in record["metrics"]["not_applicable"]["sums of parts"]


def test_a_prompt_is_not_cut_where_an_encoder_sees_all_of_it(
    twin_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large models the checks cover less: a short prompt, where it has the same sites."""
    from conformance.experiments import base

    monkeypatch.setattr(base, "LARGE", 0)
    model = twins.twin_model("mbart", prompts=("sixteen",))
    record = twins.judge(model, "bridge", twin_cache, checks=("lens",))["lens"]
    assert record["metrics"]["covered"]["layers"] == [0, 2, 3]
    assert record["verdict"]["same_function"]["failed"] == 0


# --- T5's relative positions ---------------------------------------------------------------------


def test_buckets_by_hand() -> None:
    """Eight buckets: both ways four each, of which two are single distances, then one up to
    2 * 10**0.5 = 6.3 tokens, then the rest; one way eight, of which four are single, then up to
    4 * 5**(j / 4) = 6.0, 8.9 and 13.4."""
    ahead = torch.tensor([-30, -7, -6, -2, -1, 0, 1, 2, 6, 7, 30])
    both = Buckets(8, 20, True, "")
    assert both.of(ahead).tolist() == [3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7]
    one = Buckets(8, 20, False, "")
    back = torch.tensor([0, 1, 3, 4, 5, 6, 8, 9, 13, 14, 40])
    assert one.of(-back).tolist() == [0, 1, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert one.of(torch.tensor([1, 2, 30])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("count", "furthest"), [(8, 20), (32, 128)])
def test_buckets_are_the_references(count: int, furthest: int, *, both: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    ahead = torch.arange(-300, 300)
    due = T5Attention._relative_position_bucket(ahead, both, count, furthest)
    assert torch.equal(Buckets(count, furthest, both, "").of(ahead), due)


@t5_runs
def test_only_the_mask_of_t5s_scores_is_missing(twin_cache: Path) -> None:
    """docs/findings/147. Scores are products and relative positions, z is the pattern's mix."""
    record = _judged("t5", twin_cache)["patterns"]
    notes = {c["note"] for c in record["worst"] if not c["ok"]}
    assert notes == {"which scores the mask leaves open", "pattern = softmax(scores)"}


def test_a_wrong_formula_is_our_mistake(twin_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula must give the reference's own scores: or the harness failed, not the port."""
    monkeypatch.setattr(Buckets, "of", lambda self, ahead: torch.zeros_like(ahead))
    model = twins.twin_model("longt5", prompts=("sixteen",))
    record = twins.judge(model, "bridge", twin_cache, checks=("patterns",))["patterns"]
    assert record["outcome"] == "error", record["outcome"]
    assert "correct diagnose/facts.py" in record["reason"]


# --- what fails, and where -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def benches(twin_cache: Path) -> Any:
    from conformance.prove.bench import Bench

    @functools.cache
    def load(twin: str) -> Bench:
        return Bench.load(twins.twin_model(twin, prompts=PROMPTS), "bridge", twin_cache)

    return load


@pytest.mark.parametrize(
    ("twin", "fault"),
    [
        ("mbart", "output_weights_of_stacks_reversed"),
        ("mbart", "encoder_end_shown_scaled"),
        ("mbart", "decoder_patterns_of_next_head"),
        ("mbart", "z_of_another_pattern"),
        pytest.param("t5", "relative_bias_missing", marks=t5_runs),
        pytest.param("t5", "relative_bias_of_decoder_missing", marks=t5_runs),
        pytest.param("t5", "relative_buckets_one_way", marks=t5_runs),
        pytest.param("t5", "relative_distance_doubled", marks=t5_runs),
        pytest.param("t5", "qk_transposed", marks=t5_runs),
    ],
)
def test_a_fault_of_two_stacks_is_caught_and_named(twin: str, fault: str, benches: Any) -> None:
    bench, found = benches(twin), CATALOGUE[fault]
    assert bench.provable(found)
    proof = bench.prove(found)
    assert proof.caught, proof
    assert proof.site_named, proof


@t5_runs
@pytest.mark.parametrize(
    ("fault", "hypothesis", "words"),
    [
        ("relative_bias_missing", "relative_missing", "has no relative positions"),
        ("relative_buckets_one_way", "relative_direction", "apart one way"),
        ("relative_distance_doubled", "relative_distance", "up to 40 tokens"),
    ],
)
def test_what_is_wrong_with_relative_positions_is_said(
    fault: str, hypothesis: str, words: str, twin_cache: Path
) -> None:
    from conformance.diagnose.score import Patient

    patient = _patient(twin_cache)
    assert isinstance(patient, Patient)
    found = patient.score(CATALOGUE[fault])
    ((named, statement),) = found.causes
    assert (named, found.site) == (hypothesis, "blocks.0.attn.scores")
    assert words in statement


@functools.cache
def _patient(cache: Path) -> Any:
    from conformance.diagnose.score import Patient

    return Patient.load(twins.twin_model("t5", prompts=PROMPTS), "bridge", cache)
