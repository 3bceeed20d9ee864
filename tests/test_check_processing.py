"""Weight processing keeps its promises; what does not is found, and named."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import twins

from conformance.faults import processing

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.bench import Bench

CHECK = ("processing",)


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.bench import Bench

    model = twins.twin_model("gpt2", prompts=("sixteen",))
    return Bench.load(model, "bridge", twin_cache, prompts=("sixteen",))


@pytest.mark.parametrize("fault", processing.FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: processing.Fault, bench: Bench) -> None:
    assert fault.applies(bench.exact)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def _judged(twin: str, subject: str, cache: Path) -> dict[str, Any]:
    model = twins.twin_model(twin, prompts=("sixteen",))
    return twins.judge(model, subject, cache, checks=CHECK)["processing"]


def test_flags_that_an_architecture_cannot_have_say_why(twin_cache: Path) -> None:
    record = _judged("gemma2", "bridge", twin_cache)
    assert record["outcome"] == "passed"
    reasons = record["metrics"]["not_applicable"]
    assert set(reasons) == {
        "center_writing_weights",
        "center_unembed",
        "fold_value_biases",
        "refactor_factored_attn_matrices",
    }
    assert "soft cap" in reasons["center_unembed"]


def test_what_processing_raises_is_the_ports_failure(twin_cache: Path) -> None:
    record = _judged("mpt", "bridge", twin_cache)
    assert record["outcome"] == "failed"
    assert "refactor_factored_attn_matrices" in record["reason"]
    # The standard flags were judged all the same.
    assert record["verdict"]["same_function"]["failed"] == 0


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens.HookedTransformer") is None,
    reason="TransformerLens 4 has no HookedTransformer",
)
def test_hooked_transformer_keeps_its_promises(twin_cache: Path) -> None:
    record = _judged("gpt2", "hooked", twin_cache)
    assert record["outcome"] == "passed"
    assert "not_applicable" not in record["metrics"]
