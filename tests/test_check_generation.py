"""Generation is greedy as the reference's is; what is not is found, and named."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins

from conformance.checkpoints.shrink import WINDOW
from conformance.checks.generation import Made, _greedy
from conformance.experiments import batching, generation
from conformance.experiments.generation import margins
from conformance.experiments.rows import WIDTH, project
from conformance.faults import decoding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conformance.prove.bench import Bench


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Fewer tokens than a run generates; models have ids of their own, and so traces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "STEPS", 16)
        yield


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    model = twins.twin_model("gpt2", id="gpt2-few-tokens", prompts=("sixteen",))
    return Bench.load(model, "bridge", twin_cache, prompts=("sixteen",))


def test_a_shared_continuation_goes_past_the_window_of_every_twin() -> None:
    """Where a cache that keeps a window only drops what a mask would hide."""
    assert min(batching.LENGTHS) + generation.SHARED > 2 * WINDOW


ONE_STACK = [fault for fault in decoding.FAULTS if fault not in decoding.TWO_STACKS]


@pytest.mark.parametrize("fault", ONE_STACK, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: decoding.Fault, bench: Bench) -> None:
    assert fault.applies(bench.exact)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def test_an_edit_is_blamed_where_generation_with_the_same_kind_of_cache_is_right(
    twin_cache: Path,
) -> None:
    """Mamba's bridge drops logits without a cache (docs/findings/072): with one, it is right."""
    from conformance.prove.bench import Bench

    model = twins.twin_model("mamba", id="mamba-few-tokens", prompts=("sixteen",))
    port = Bench.load(model, "bridge", twin_cache, prompts=("sixteen",))
    fault = next(f for f in decoding.FAULTS if f.name == "generation_drops_hooks")
    proof = port.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def _judged(twin: str, subject: str, cache: Path) -> dict[str, Any]:
    model = twins.twin_model(twin, id=f"{twin}-few-tokens", prompts=("sixteen",))
    return twins.judge(model, subject, cache, checks=("generation",))["generation"]


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens.HookedTransformer") is None,
    reason="TransformerLens 4 has no HookedTransformer",
)
def test_hooked_transformer_generates_as_the_reference_does(twin_cache: Path) -> None:
    record = _judged("llama", "hooked", twin_cache)
    assert record["outcome"] == "passed"
    assert record["verdict"]["exact"]["compared"] >= 9


class _Stored(dict[str, torch.Tensor]):
    def spread(self, name: str) -> float:
        return 1e-14


def _made(lead: float) -> tuple[_Stored, Made]:
    """A reference of four tokens whose third leads by ``lead``, and a port that takes another."""
    logits = torch.zeros(4, 7, dtype=torch.float64)
    tokens = torch.tensor([1, 2, 3, 4])
    logits[torch.arange(3), tokens[1:]] = 1.0
    logits[1, 5] = 1.0 - lead
    stored = _Stored(
        {"a/tokens": tokens, "a/logits": project(logits[None])[0], "a/margins": margins(logits)}
    )
    own = torch.tensor([[1, 2, 5, 6]])
    return stored, Made(own, logits[None, :3])


def test_a_tie_is_reported_and_not_failed() -> None:
    metrics: dict[str, Any] = {}
    stored, made = _made(lead=1e-13)
    assert all(c.ok for c in _greedy(metrics, stored, "a", made, "greedily"))  # type: ignore[arg-type]
    assert metrics["ties"] == {"a, greedily": [2, pytest.approx(1e-13, rel=0.1)]}


def test_another_token_is_no_tie() -> None:
    metrics: dict[str, Any] = {}
    stored, made = _made(lead=1e-6)
    tokens, *_ = _greedy(metrics, stored, "a", made, "greedily")  # type: ignore[arg-type]
    assert not tokens.ok
    assert tokens.index == (2,)
    assert metrics == {}


def test_the_margin_is_relative() -> None:
    logits = torch.tensor([[4.0, 3.0, -8.0]], dtype=torch.float64)
    assert margins(logits).tolist() == [1 / 8]
    assert project(logits[None]).shape[-1] == WIDTH


def test_adapters_may_decline() -> None:
    from conformance.checks.generation import _declined

    class Recurrent:
        supports_generation = False

    model = SimpleNamespace(adapter=Recurrent())
    reference = SimpleNamespace(family=SimpleNamespace(causal=True))
    context = SimpleNamespace(subject=SimpleNamespace(model=model), reference=reference)
    assert _declined(context) == "Recurrent does not support it"  # type: ignore[arg-type]
