"""The check of edits: right ports pass it, and it names the site of every edit gone wrong."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins
from twins import twin_model

from conformance.checks.interventions import Interventions
from conformance.experiments.base import Scope
from conformance.experiments.interventions import EDITS, edit, every_edit
from conformance.experiments.rows import gaussian, project, prompt_of, run_rows
from conformance.faults import CATALOGUE
from conformance.prove.bench import Bench

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OLD = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
FAULTS = [name for name, fault in CATALOGUE.items() if fault.needs == "interventions"]
CHECK = "interventions"


def judged(twin: str, subject: str, cache: Path) -> dict[str, Any]:
    return twins.judge(twin_model(twin, prompts=("one",)), subject, cache, checks=(CHECK,))[CHECK]


# --- what both sides are asked ------------------------------------------------------------------


def test_edits_are_what_they_are_called() -> None:
    value = torch.arange(32, dtype=torch.float64).reshape(16, 2)
    assert not edit("embed", "zero", 1.0)(value).any()
    added = edit("embed", "add", 4.0)(value) - value
    assert torch.allclose(added, 4.0 * gaussian("embed", 16, 2))
    swapped = edit("embed", "swap", 1.0)(value)
    assert [int(r[0]) // 2 for r in swapped] == [0, 1, 2, 12, *range(4, 12), 3, 13, 14, 15]
    scores = torch.randn(2, 5, 5)
    swapped = edit("blocks.0.attn.scores", "swap", 1.0)(scores)
    assert torch.equal(swapped[:, 1], scores[:, 4])
    assert torch.equal(swapped[:, 4], scores[:, 1])
    assert set(every_edit({"embed": 1.0})) == {f"embed/{kind}" for kind in EDITS}


def test_rows_are_single_runs(twin_cache: Path) -> None:
    model = twins.huggingface("llama", twin_cache)
    prompt = prompt_of(model.dims, Scope.of(model.dims))
    done: list[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = [
        {"blocks.1.attn.z": torch.zeros_like},
        {},
        {"embed": lambda t: 2 * t, "blocks.0.mlp_out": torch.zeros_like},
    ]
    for index, found in run_rows(model, prompt, done):
        alone = model.run(prompt, lambda *_: None, edits=done[index])
        assert torch.allclose(found, project(alone)[0], rtol=1e-11), index


# --- right ports --------------------------------------------------------------------------------


def test_a_right_bridge_passes(twin_cache: Path) -> None:
    record = judged("gpt-neox", "bridge", twin_cache)
    assert record["outcome"] == "passed", record["reason"]
    assert record["verdict"]["same_function"]["compared"] > 100
    hidden = set(record["metrics"]["not_editable"])
    assert hidden == {f"blocks.{i}.attn.rot_{x}" for i in range(3) for x in "qk"}


@pytest.mark.skipif(not OLD, reason="HookedTransformer left in 4.0")
def test_a_right_hooked_transformer_passes(twin_cache: Path) -> None:
    record = judged("gpt2", "hooked", twin_cache)
    assert record["outcome"] == "passed", record["reason"]
    why = record["metrics"]["not_editable"]
    assert why["ln_final"] == "no hook of the library is on its way"


def test_a_bridge_fails_at_resid_mid_alone(twin_cache: Path) -> None:
    """docs/findings/020."""
    record = judged("llama", "bridge", twin_cache)
    assert record["metrics"]["failing"] == ["resid_mid"]
    assert record["first_divergence"] == "blocks.0.resid_mid"


def test_an_edit_without_effect_is_said_to_be_one(twin_cache: Path) -> None:
    """docs/findings/004."""
    record = judged("gptj", "bridge", twin_cache)
    assert record["metrics"]["failing"] == ["attn.pattern", "attn.scores"]
    assert "blocks.0.attn.scores on sixteen (zeroed): the edit had no effect" in record["reason"]


# --- wrong ports --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    return Bench.load(twin_model("qwen2", prompts=("one",)), "bridge", twin_cache, prompts=("one",))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_edits_are_caught_and_named(name: str, bench: Bench) -> None:
    fault = CATALOGUE[name]
    assert bench.provable(fault)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.site_named, proof.named


@pytest.mark.skipif(not OLD, reason="HookedTransformer left in 4.0")
def test_faults_of_edits_are_caught_in_a_hooked_transformer(twin_cache: Path) -> None:
    bench = Bench.load(twin_model("gpt2"), "hooked", twin_cache, prompts=("one",))
    for name in FAULTS:
        assert bench.provable(CATALOGUE[name]), name
        proof = bench.prove(CATALOGUE[name])
        assert proof.site_named, (name, proof.named)


def test_an_edit_that_raises_is_named_and_hides_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.exact.run
    site = "blocks.1.attn.z"

    def run(*args: Any, edits: Any = None, **kwargs: Any) -> torch.Tensor:
        if site in (edits or {}):
            torch.nn.Linear(2, 3)(torch.ones(1, 5))
        return right(*args, edits=edits, **kwargs)

    monkeypatch.setattr(bench.exact, "run", run)
    check = Interventions()
    check.comparisons.extend(check.exact(bench._context(bench.exact)))
    raised = [c for c in check.comparisons if c.judgement == "structure"]
    assert {c.site for c in raised} == {site}
    assert len(raised) == len(EDITS)
    assert all("raised RuntimeError: mat1 and mat2" in c.note for c in raised)
    assert {c.site for c in check.comparisons} > {"embed", "blocks.1.attn.q", "ln_final"}


def test_edits_of_a_port_with_other_logits_are_not_judged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CATALOGUE["mlp_out_scaled"].apply(bench.exact):
        check = Interventions()
        (only,) = check.exact(bench._context(bench.exact))
    assert not only.ok
    assert only.site == "logits"
