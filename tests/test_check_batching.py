"""A row of a batch is what it is alone; what is not is found, and named."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins

from conformance.experiments.batching import padded, unpadded
from conformance.faults import batches

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    model = twins.twin_model("gpt2", prompts=("sixteen",))
    return Bench.load(model, "bridge", twin_cache, prompts=("sixteen",))


@pytest.mark.parametrize("fault", batches.FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: batches.Fault, bench: Bench) -> None:
    assert fault.applies(bench.exact)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def test_padding_goes_where_it_is_asked_to() -> None:
    rows = [torch.tensor([5, 6]), torch.tensor([7, 8, 9])]
    left, right = padded(rows, "left"), padded(rows, "right")
    assert left.tokens.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert right.tokens.tolist() == [[5, 6, 0], [7, 8, 9]]
    for prompt in (left, right):
        assert prompt.mask is not None
        assert prompt.mask.sum(1).tolist() == [2, 3]
        assert unpadded(prompt.tokens, prompt, 0).tolist() == [5, 6]


def _judged(twin: str, subject: str, cache: Path) -> dict[str, Any]:
    model = twins.twin_model(twin, prompts=("sixteen",))
    return twins.judge(model, subject, cache, checks=("batching",))["batching"]


def test_positions_that_no_model_takes_are_not_given(twin_cache: Path) -> None:
    record = _judged("mpt", "bridge", twin_cache)
    assert record["outcome"] == "passed"
    assert record["metrics"]["not_applicable"] == {"position ids given": "the reference takes none"}


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens.HookedTransformer") is None,
    reason="TransformerLens 4 has no HookedTransformer",
)
def test_hooked_transformer_keeps_rows_apart(twin_cache: Path) -> None:
    record = _judged("opt", "hooked", twin_cache)
    assert record["outcome"] == "passed"
    assert list(record["metrics"]["not_applicable"]) == ["position ids given"]
