"""``lens`` holds the library's own readings of a cache against the reference."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest
import torch
import twins

from conformance.experiments.lens import pair, power_sums, power_traces, projection
from conformance.faults import CATALOGUE
from conformance.faults.lenses import FAULTS
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench

HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None


@pytest.mark.parametrize("subject", ["bridge", *(["hooked"] if HOOKED else [])])
def test_a_right_port_passes(subject: str, twin_cache: Path) -> None:
    model = twins.twin_model("gpt2", prompts=("sixteen",))
    record = twins.judge(model, subject, twin_cache, checks=("lens",))["lens"]
    assert record["outcome"] == "passed", record["reason"]
    assert "not_applicable" not in record["metrics"]
    layers = twins.huggingface("gpt2", twin_cache).dims.n_layers
    assert record["verdict"]["same_function"]["compared"] > 15 * layers


def test_what_an_architecture_makes_meaningless_is_said(twin_cache: Path) -> None:
    model = twins.twin_model("mixtral", prompts=("sixteen",))
    record = twins.judge(model, "bridge", twin_cache, checks=("lens",))["lens"]
    assert record["outcome"] == "passed", record["reason"]
    assert "experts" in record["metrics"]["not_applicable"]["neuron results"]


def test_without_its_prompt_it_does_not_apply(twin_cache: Path) -> None:
    model = twins.twin_model("gpt2", prompts=("one",))
    record = twins.judge(model, "bridge", twin_cache, checks=("lens",))["lens"]
    assert record["outcome"] == "not_applicable"


def test_eigenvalues_without_an_order() -> None:
    matrix = torch.tensor([[[2.0, 1.0], [-3.0, 1.0]]], dtype=torch.float64)
    largest = torch.linalg.svdvals(matrix)[..., 0]
    sums = power_sums(torch.linalg.eigvals(matrix).flip(-1), largest)
    assert torch.allclose(sums, power_traces(matrix / largest[..., None, None]))


def test_directions_are_the_same_on_either_side() -> None:
    assert torch.equal(projection(7), projection(7))
    assert pair(Prompt("p", torch.tensor([[5, 5, 9]]))) == (5, 9)


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    return Bench.load(twins.twin_model("gemma2", prompts=("sixteen",)), "bridge", twin_cache)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: object, bench: Bench) -> None:
    found = CATALOGUE[fault.name]  # type: ignore[attr-defined]
    assert bench.provable(found)
    proof = bench.prove(found)
    assert proof.caught, proof
    assert proof.site_named, proof
    assert proof.checks == ("lens",)


def test_a_head_that_is_not_linear_has_no_logit_lens(twin_cache: Path) -> None:
    model = twins.twin_model("modernbert-decoder", prompts=("sixteen",))
    record = twins.judge(model, "bridge", twin_cache, checks=("lens",))["lens"]
    assert record["outcome"] == "passed"
    left_out = record["metrics"]["not_applicable"]
    assert {"logit lens", "attributions to logits"} <= set(left_out)
