"""Weight processing keeps its promises; what does not is found, and named."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import twins

from conformance.faults import processing

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench

CHECK = ("processing",)


#: Twin -> faults proven on it: GPT-2 has every flag, Llama few, and is processed faster.
PROVEN = {
    "gpt2": ("center_writing_weights_skipped", "fold_value_biases_skipped", "processed_bias_lost"),
    "llama": (
        "fold_ln_skipped",
        "center_unembed_skipped",
        "processed_queries_wrong",
        "processed_mlp_wrong",
        "processed_head_wrong",
    ),
}


@pytest.fixture(scope="module")
def benches(twin_cache: Path) -> dict[str, Bench]:
    from conformance.prove.bench import Bench

    return {
        twin: Bench.load(
            twins.twin_model(twin, prompts=("sixteen",)), "bridge", twin_cache, prompts=("sixteen",)
        )
        for twin in PROVEN
    }


@pytest.mark.parametrize(
    ("twin", "name"), [(twin, name) for twin, names in PROVEN.items() for name in names]
)
def test_faults_are_caught_and_named(twin: str, name: str, benches: dict[str, Bench]) -> None:
    bench = benches[twin]
    fault = next(f for f in processing.FAULTS if f.name == name)
    assert fault.applies(bench.exact)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def test_every_fault_applies_somewhere(benches: dict[str, Bench]) -> None:
    assert all(fault.applies(benches["gpt2"].exact) for fault in processing.FAULTS)


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


def test_a_port_that_declines_all_processing_is_not_failed_for_it(twin_cache: Path) -> None:
    model = twins.twin_model("vaultgemma", prompts=("sixteen",))
    records = twins.judge(model, "bridge", twin_cache, checks=("logits", "processing"))
    assert records["processing"]["outcome"] == "not_applicable"
    assert records["logits"]["outcome"] == "passed"
    said = records["logits"]["metrics"]["not_applicable"]["processed weights"]
    assert "VaultGemma" in said
