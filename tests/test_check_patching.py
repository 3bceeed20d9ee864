"""The check of activation patching: right ports pass it, wrong ones are named."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins
from twins import twin_model

from conformance.checks.stacks import cells
from conformance.experiments.base import SHORT, Scope
from conformance.experiments.patches import patch
from conformance.experiments.patching import (
    SAMPLED,
    SAMPLED_LARGE,
    STACKS,
    SWEEPS,
    indices,
    later,
    paths,
    prompts,
    tangents,
)
from conformance.faults import CATALOGUE
from conformance.prove.bench import Bench

if TYPE_CHECKING:
    from pathlib import Path

OLD = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None
#: Of an encoder and a decoder: tests/test_two_stacks_patching.py.
OTHERS = ("patch_of_next_cross_head", "target_ignored")
FAULTS = [n for n, fault in CATALOGUE.items() if fault.needs == "patching" and n not in OTHERS]
CHECK = "patching"


def judged(twin: str, subject: str, cache: Path) -> dict[str, Any]:
    return twins.judge(twin_model(twin, prompts=("one",)), subject, cache, checks=(CHECK,))[CHECK]


# --- what both sides are asked ------------------------------------------------------------------


def test_every_sweep_of_the_library_is_known() -> None:
    from transformer_lens import patching

    # Every source's direct paths are the one source's, one after the other.
    other = {"direct_path", "direct_path_all_sources"}
    known = {name.removeprefix("get_act_patch_") for name in (*SWEEPS, *STACKS)} | other
    theirs = {n.removeprefix("get_act_patch_") for n in vars(patching) if n.startswith("get_act_")}
    assert theirs - known == set()
    for name, sweep in SWEEPS.items():
        axes = getattr(patching, name).keywords["index_axis_names"]
        renamed = {"head_index": "head", "dest_pos": "dest", "src_pos": "src"}
        assert tuple(renamed.get(axis, axis) for axis in axes) == sweep.axes, name


def test_a_patch_changes_what_its_index_says() -> None:
    own, clean = torch.zeros(8, 4, 2), torch.ones(8, 4, 2)
    changed = patch("attn.z", ("pos", "head"), (3, 1), clean)(own)
    assert changed.nonzero()[:, :2].unique(dim=0).tolist() == [[3, 1]]
    assert not own.any()
    assert patch("attn.k", ("head",), (2,), clean)(own)[:, 2].all()
    own, clean = torch.zeros(4, 8, 8), torch.ones(4, 8, 8)
    changed = patch("attn.pattern", ("head", "dest", "src"), (1, 5, 2), clean)(own)
    assert changed.nonzero().tolist() == [[1, 5, 2]]


def test_sweeps_are_sampled_over_layers(twin_cache: Path) -> None:
    dims = twins.huggingface("qwen2", twin_cache).dims
    scope = Scope.of(dims)
    for name, sweep in SWEEPS.items():
        made = indices(name, dims, scope)
        assert made == sorted(set(made)) == indices(name, dims, scope)
        assert {index[0] for index in made} == set(range(dims.n_layers))
        assert all(len(index) == len(sweep.axes) for index in made)
        assert len(made) == SAMPLED
        some = indices(name, dims, Scope((0, 2), SHORT, large=True))
        assert len(some) == SAMPLED_LARGE


def test_stacks_have_a_place_for_every_patch(twin_cache: Path) -> None:
    """Grouped keys and values: fewer patches than places, whose rest stays zero."""
    subject = twins.huggingface("qwen2", twin_cache)
    d = subject.dims
    for name, (axes, sweeps) in STACKS.items():
        due = cells(name, d, 5)
        assert len({cell.place for cell in due}) == len(due)
        assert {cell.place[0] for cell in due} == set(range(len(sweeps)))
        keys = [cell for cell in due if cell.site == "blocks.1.attn.k"]
        if "head" in axes:
            assert {cell.place[-1] for cell in keys} == set(range(d.n_kv_heads))


def test_prompts_differ_and_masked_scores_do_not_move(twin_cache: Path) -> None:
    dims = twins.huggingface("qwen2", twin_cache).dims
    clean, corrupted = prompts(dims, Scope.of(dims))
    assert clean.tokens.shape == corrupted.tokens.shape == (1, SHORT)
    assert not torch.equal(clean.tokens, corrupted.tokens)
    masked = torch.tensor([1.0, -torch.inf])
    assert tangents({"a": masked}, {"a": masked - 1.0})["a"].tolist() == [1.0, 0.0]


# --- right ports --------------------------------------------------------------------------------


def test_a_right_bridge_passes(twin_cache: Path) -> None:
    record = judged("falcon-7b", "bridge", twin_cache)
    assert record["outcome"] == "passed", record["reason"]
    assert set(record["metrics"]["not_applicable"]) == {"get_act_patch_resid_mid"}
    assert record["verdict"]["exact"]["compared"] > 15


@pytest.mark.skipif(not OLD, reason="HookedTransformer left in 4.0")
def test_a_right_hooked_transformer_passes(twin_cache: Path) -> None:
    record = judged("gpt2", "hooked", twin_cache)
    assert record["outcome"] == "passed", record["reason"]
    assert "not_applicable" not in record["metrics"]


def test_a_bridge_fails_at_resid_mid_alone(twin_cache: Path) -> None:
    """docs/findings/020."""
    record = judged("gpt2", "bridge", twin_cache)
    assert record["metrics"]["failing"] == ["resid_mid"]
    assert record["first_divergence"] == "blocks.0.resid_mid"
    assert "bit for bit" in record["reason"]


def test_direct_paths_end_in_heads_that_read_them(twin_cache: Path) -> None:
    fam, dims = twins.described("gpt2", twin_cache)
    scope = Scope.of(dims)
    assert paths(dims, scope, fam) == {"q": (0, 0), "k": (1, 3), "v": (1, 2)}
    assert paths(dims, Scope((0, 1, 2), SHORT, large=True), fam)["q"] == (1, 0)
    assert paths(twins.huggingface("qwen2", twin_cache).dims, scope, fam).keys() == {"q"}
    assert paths(replace(dims, n_layers=1), scope, fam) == {}
    assert paths(dims, scope, replace(fam, attn=None)) == {}
    assert later(dims, 1) == [(2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.mark.skipif(OLD, reason="direct paths came with TransformerLens 4")
def test_a_direct_path_that_the_library_refuses_is_said_to_be(twin_cache: Path) -> None:
    reasons = judged("granite", "bridge", twin_cache)["metrics"]["not_applicable"]
    (why,) = [why for what, why in reasons.items() if "direct_path" in what]
    assert "scales its attention output" in why


# --- wrong ports --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    return Bench.load(twin_model("qwen2", prompts=("one",)), "bridge", twin_cache, prompts=("one",))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_patches_are_caught_and_named(name: str, bench: Bench) -> None:
    fault = CATALOGUE[name]
    if OLD and name == "path_into_other_head":
        assert not bench.provable(fault)
        return
    assert bench.provable(fault)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.site_named, proof.named


def test_a_sweep_that_raises_is_the_ports_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*args: Any, **kwargs: Any) -> None:
        torch.nn.Linear(2, 3)(torch.ones(1, 5))

    monkeypatch.setattr(bench.exact.model, "run_with_hooks", raises)
    (failed,) = bench._run_check(CHECK)[CHECK]
    assert failed.judgement == "structure"
    assert failed.note.startswith("a plain run raised RuntimeError")
