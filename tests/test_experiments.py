"""Experiments: stored once, each result with its spread; one that fails stops no other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins

from conformance import experiments
from conformance.checks.base import Check, Context, agree, identical
from conformance.engine import Running, run_checks
from conformance.errors import NotApplicable, TraceError
from conformance.experiments import store
from conformance.experiments.base import LARGE, Apparatus, Experiment, Scope
from conformance.reference import Reference, directory, ensure
from conformance.verdicts import conclude

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from conformance.records import Comparison

MODEL = twins.twin_model("gpt2", prompts=("sixteen",))


class Zeroed(Experiment):
    """The logits with the first layer's attention zeroed, and the tokens they would give."""

    calls = 0

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        type(self).calls += 1
        edits = {"blocks.0.attn_out": torch.zeros_like}
        logits = on.model.run(on.prompts["sixteen"], lambda *_: None, edits=edits)
        yield "logits", logits
        yield "tokens", logits.argmax(-1)
        yield "always", torch.tensor(float(self.calls))

    def facts(self, on: Apparatus) -> dict[str, Any]:
        return {"layers": on.scope.layers}


class Broken(Experiment):
    """One of ours that does not work."""

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        yield "one", torch.ones(1)
        raise RuntimeError("no such thing")


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = {"zeroed": Zeroed(), "broken": Broken()}
    monkeypatch.setattr(store, "experiment", found.get)
    monkeypatch.setattr(store, "code_hashes", lambda: dict.fromkeys(found, "0"))
    monkeypatch.setattr(Zeroed, "calls", 0)
    checkpoint = twins.resolve(MODEL, tmp_path)
    return ensure(MODEL, checkpoint, tmp_path, lambda _: None)


def run_them(trace: Path, *checks: str) -> list[str]:
    said: list[str] = []
    cache = trace.parent.parent
    store.ensure(MODEL, twins.resolve(MODEL, cache), trace, checks, said.append)
    return said


def test_results_are_stored_once_with_their_spread(trace: Path) -> None:
    said = run_them(trace, "zeroed", "weights")
    assert "reference: experiment zeroed, weights moved" in said
    found = store.stored(trace, "zeroed")
    assert set(found) == {"logits", "tokens", "always"}
    assert 0 < found.spread("logits") < 1e-12
    assert found.spread("tokens") == 0.0
    assert found.spread("always") == 1.0  # two runs of it differ by the whole of the first
    assert found.facts == {"layers": [0, 1, 2]}
    calls = Zeroed.calls

    assert run_them(trace, "zeroed") == []
    assert Zeroed.calls == calls == 2


def test_an_experiment_that_fails_stops_no_other(trace: Path) -> None:
    run_them(trace, "broken", "zeroed")
    assert "logits" in store.stored(trace, "zeroed")
    with pytest.raises(TraceError, match="no such thing"):
        store.stored(trace, "broken")
    assert not list((trace / "experiments").glob(".partial-*"))


def test_what_was_never_run_is_missing(trace: Path) -> None:
    with pytest.raises(TraceError):
        store.stored(trace, "zeroed")


def test_a_tie_tells_nothing() -> None:
    assert store.moved(torch.tensor([1, 2]), torch.tensor([1, 3])) == math.inf
    assert store.moved(torch.zeros(2), torch.zeros(3)) == math.inf


def test_scope_covers_twins_whole_and_large_models_in_part(twin_cache: Path) -> None:
    from dataclasses import replace

    dims = twins.huggingface("llama", twin_cache).dims
    assert Scope.of(dims) == Scope(tuple(range(dims.n_layers)), 16, large=False)
    large = Scope.of(replace(dims, n_layers=30, d_model=math.isqrt(LARGE)))
    assert large.layers == (0, 15, 29)
    assert large.said() == {"covered": {"layers": [0, 15, 29], "positions": 8}}


# --- checks that make runs of their own ---------------------------------------------------------


class AsZeroed(Check):
    name = "zeroed"
    runs = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        stored = context.experiment(self.name)
        (prompt,) = context.reference.prompts
        with self.port("zeroing attention", "blocks.0.attn_out"):
            edits = {"blocks.0.attn_out": torch.zeros_like}
            logits = context.subject.run(prompt, lambda *_: None, edits=edits)
            yield agree(stored, "logits", logits, site="logits", on="sixteen, zeroed")
            yield identical(stored["tokens"], logits.argmax(-1), site="logits", on="sixteen")


class Raises(AsZeroed):
    error: Exception = RuntimeError("ours")

    def exact(self, context: Context) -> Iterable[Comparison]:
        raise self.error


class PortRaises(AsZeroed):
    def exact(self, context: Context) -> Iterable[Comparison]:
        with self.port("an edit", "blocks.0.attn_out"):
            torch.ones(2) @ torch.ones(3)
        return ()


@pytest.fixture
def context(trace: Path) -> Context:
    from conformance.implementations.subjects import load_subject

    cache = trace.parent.parent
    checkpoint = twins.resolve(MODEL, cache)
    assert directory(MODEL, checkpoint, cache) == trace
    reference = Reference(trace, checkpoint.path, MODEL.architecture)
    subject = load_subject(
        "bridge", checkpoint.path, reference.family, reference.dims, torch.float64
    )
    return Context(reference, subject)


def verdict(check: Check, running: Running) -> Any:
    error = running.errors.get(check.name)
    return conclude(MODEL, "bridge", check.name, check.comparisons, check.metrics, 0.0, error)


def test_a_check_compares_its_own_runs_with_the_reference(context: Context) -> None:
    run_them(context.reference.path, "zeroed")
    running = Running([AsZeroed()])
    run_checks(running, context, lambda _: None)
    assert verdict(running.checks[0], running).outcome == "passed"
    assert running.seconds["zeroed"] > 0

    weight = context.subject.model.blocks[1].mlp.out.weight
    with torch.no_grad():
        weight[0, 0] += 1e-6
    running = Running([AsZeroed()])
    run_checks(running, context, lambda _: None)
    found = verdict(running.checks[0], running)
    assert (found.outcome, found.first_divergence) == ("failed", "logits")


def test_our_failure_is_an_error_of_that_check_alone(context: Context) -> None:
    run_them(context.reference.path, "zeroed")
    running = Running([Raises(), AsZeroed()])
    run_checks(running, context, lambda _: None)
    assert not running.checks[0].comparisons
    found = verdict(running.checks[0], running)
    assert found.outcome == "error"
    assert "ours" in found.reason
    assert len(running.checks[1].comparisons) == 2


def test_what_the_port_raises_is_its_failure(context: Context) -> None:
    running = Running([PortRaises()])
    run_checks(running, context, lambda _: None)
    found = verdict(running.checks[0], running)
    assert (found.outcome, found.first_divergence) == ("failed", "blocks.0.attn_out")
    assert "an edit raised RuntimeError" in found.reason


def test_nothing_to_compare_is_not_applicable_with_its_reason(context: Context) -> None:
    check = Raises()
    check.error = NotApplicable("no attention here", "none needed")
    running = Running([check])
    run_checks(running, context, lambda _: None)
    found = verdict(check, running)
    assert (found.outcome, found.reason) == ("not_applicable", "zeroed: no attention here")


def test_every_experiment_belongs_to_a_check_and_states_what_it_uses() -> None:
    from conformance.checks.names import CHECKS

    for check in experiments._MODULES:
        assert check in CHECKS
        assert isinstance(experiments.experiment(check), Experiment)
    assert experiments.experiment("logits") is None
