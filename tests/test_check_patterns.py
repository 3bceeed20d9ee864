"""``patterns`` sees what a comparison with the reference cannot."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest
import twins

from conformance.faults import CATALOGUE
from conformance.faults.views import FAULTS

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench

PROMPTS = ("sixteen", "padded_left", "long")
HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None


@pytest.mark.parametrize("twin", ["gpt-oss", "mpt", "gpt-neox"])
@pytest.mark.parametrize("subject", ["bridge", *(["hooked"] if HOOKED else [])])
def test_right_ports_pass(twin: str, subject: str, twin_cache: Path) -> None:
    if subject == "hooked" and twin != "gpt-neox":
        pytest.skip("no official name, or one with constants of its own")
    model = twins.twin_model(twin, prompts=PROMPTS)
    record = twins.judge(model, subject, twin_cache, checks=("patterns",))["patterns"]
    assert record["outcome"] == "passed", record["reason"]
    layers = twins.huggingface(twin, twin_cache).dims.n_layers
    relations = 5 * layers * len(PROMPTS)
    assert sum(judged["compared"] for judged in record["verdict"].values()) > relations
    if twin == "gpt-neox" and subject == "bridge":
        assert set(record["metrics"]["taken_from_the_reference"]) == {"attn.rot_q", "attn.rot_k"}


def test_scores_that_are_the_pattern_fail(twin_cache: Path) -> None:
    model = twins.twin_model("opt", prompts=("sixteen",))
    record = twins.judge(model, "bridge", twin_cache, checks=("patterns",))["patterns"]
    assert record["outcome"] == "failed"
    assert record["first_divergence"] == "blocks.0.attn.scores"


@pytest.fixture(scope="module", params=["gemma2"])
def bench(request: pytest.FixtureRequest, twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    return Bench.load(twins.twin_model(request.param, prompts=PROMPTS), "bridge", twin_cache)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: object, bench: Bench) -> None:
    found = CATALOGUE[fault.name]  # type: ignore[attr-defined]
    assert bench.provable(found)
    proof = bench.prove(found)
    assert proof.caught, proof
    assert proof.site_named, proof
    assert proof.checks == ("patterns",)


def test_a_leak_is_below_every_other_bound(bench: Bench) -> None:
    """Why this check is needed: the others let these pass."""
    from conformance.checks.base import Pass
    from conformance.engine import run_passes

    for name in ("mask_leaks", "scores_shown_unmasked"):
        with CATALOGUE[name].apply(bench.exact):
            running, context = bench._begin("float64")
            prompts = bench.reference.prompts
            run_passes(
                running, context, [Pass("float64", "plain", p) for p in prompts], lambda _: None
            )
        assert not [c for check in running.checks for c in check.comparisons if not c.ok], name
