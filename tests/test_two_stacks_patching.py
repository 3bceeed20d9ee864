"""Patching of an encoder and a decoder: right ports restore what is due, wrong ones are named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins
from twins import twin_model

from conformance.checks.by_hand import SWEPT, refused
from conformance.experiments.base import SHORT, Scope
from conformance.experiments.patches import along, whole
from conformance.experiments.patching import prompts, routes, values
from conformance.experiments.rows import apart, project
from conformance.experiments.two_stacks import BY_HAND, crossing_paths, half, made, row_of, site_of
from conformance.faults import CATALOGUE
from conformance.prove.bench import Bench

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.checks.base import Check

CHECK = "patching"
#: The port warns of edits that it loses: docs/findings/004.
pytestmark = pytest.mark.filterwarnings("ignore:A hook on .* returned a modified tensor")
#: Known of the port: docs/findings/004, 122 and 159.
KNOWN = {
    *("attn.pattern", "attn.scores", "cross_attn.pattern", "cross_attn.scores"),
    *("resid_mid", SWEPT),
}
CAUGHT = (
    *("patch_rounded", "patch_reaches_back", "patch_of_next_head", "patch_from_changed_cache"),
    *("patch_of_next_cross_head", "target_ignored"),
)
ONE_STACK = ("sweep_shifted", "stack_swapped", "path_into_other_head")


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    return Bench.load(twin_model("bart", prompts=("one",)), "bridge", twin_cache, prompts=("one",))


# --- what both sides are asked ------------------------------------------------------------------


def test_the_half_run_is_clean_in_its_source_alone(twin_cache: Path) -> None:
    """By hand: the clean encoder's output, put into the corrupted run, is that run."""
    model = twins.huggingface("t5", twin_cache)
    clean, corrupted = prompts(model.dims, Scope.of(model.dims))
    source = half(clean, corrupted, model.model.config)
    assert torch.equal(source.tokens, clean.tokens)
    assert source.decoder is not None
    assert source.decoder.tolist() == [[0, *corrupted.tokens[0, :-1].tolist()]]
    everywhere = range(model.dims.n_layers)
    seen = values(model, clean, everywhere)
    due = model.run(source, lambda *_: None)
    handed = apart([whole("ln_encoder", seen["ln_encoder"])])
    assert torch.equal(model.run(corrupted, lambda *_: None, edits=handed), due)
    last = f"blocks.{model.dims.n_layers - 1}.resid_post"
    restored = apart([whole(last, seen[last])])
    assert torch.equal(model.run(source, lambda *_: None, edits=restored)[0], seen["logits"])


def test_patches_by_hand_reach_every_layer_that_has_the_site(twin_cache: Path) -> None:
    fam, dims = twins.described("bart", twin_cache)
    scope = Scope.of(dims)
    chosen = made(dims, scope, fam)
    assert chosen.keys() == BY_HAND.keys()
    for name, indices in chosen.items():
        layers = {2, 3} if "cross" in name else {0, 1, 2, 3}
        assert {index[0] for index in indices} == layers, name
        assert len(indices) == 2 * len(layers)
    large = made(dims, Scope((0, 2, 3), SHORT, large=True), fam)
    assert [index[0] for index in large["cross_head_q_all_pos"]] == [2, 3]
    # LongT5's encoder attends within blocks: no pattern there.
    fam, dims = twins.described("longt5", twin_cache)
    layers = {index[0] for index in made(dims, Scope.of(dims), fam)["head_pattern_all_pos"]}
    assert layers == {3, 4}


def test_a_patch_by_hand_changes_what_its_index_says() -> None:
    name, index = "cross_head_k_by_pos", (3, 5, 1)
    assert site_of(name, index) == "blocks.3.cross_attn.k"
    ((site, edit),) = row_of(name, index, torch.ones(8, 4, 2)).items()
    assert site == "blocks.3.cross_attn.k"
    assert edit(torch.zeros(8, 4, 2)).nonzero()[:, :2].unique(dim=0).tolist() == [[5, 1]]


def test_direct_paths_stay_in_a_stack_or_cross(twin_cache: Path) -> None:
    fam, dims = twins.described("t5", twin_cache)  # three layers and two
    scope = Scope.of(dims)
    found = crossing_paths(dims, scope, fam)
    ways = {name: (path.layer, tuple(path.reads)) for name, path in found.items()}
    assert ways["encoder q"] == (0, ("blocks.1.attn.q", "blocks.2.attn.q"))
    assert ways["decoder v"] == (3, ("blocks.4.attn.v",))
    assert ways["cross k"] == (2, ("blocks.3.cross_attn.k", "blocks.4.cross_attn.k"))
    assert set(found["cross k"].reads.values()) == {"blocks.2.resid_post"}
    assert crossing_paths(dims, scope, replace(fam, post_norm=True)) == {}
    large = crossing_paths(dims, Scope((0, 2, 4), SHORT, large=True), fam)
    assert large["encoder q"].layer == 1


def test_a_path_changes_what_one_head_reads(twin_cache: Path) -> None:
    """By hand: a head's write into the keys of the first layer that attends to the encoder."""
    model = twins.huggingface("t5", twin_cache)
    dims, scope = model.dims, Scope.of(model.dims)
    clean, corrupted = prompts(dims, scope)
    path = routes(dims, scope, model.family)["cross k"]
    z, end = "blocks.2.attn.z", "blocks.3.cross_attn.k"
    theirs, ours = values(model, clean, (2,))[z], values(model, corrupted, (2, 3))
    attention = model.model.get_submodule("encoder.block.2.layer.0.SelfAttention")
    with model.session():
        weight = attention.o.weight.reshape(dims.d_model, dims.n_heads, -1)[:, path.head]
        written = (theirs - ours[z])[:, path.head] @ weight.T
        stream = ours["blocks.2.resid_post"] + written
        normed = model.model.encoder.final_layer_norm(stream)
        keys = model.model.decoder.block[0].layer[1].EncDecAttention.k(normed)
    expected = keys.unflatten(-1, (dims.n_heads, -1))

    def third(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, :, 2] = expected[:, 2]
        return value

    # The head's write reaches later layers through its own MLP too: not on this way.
    due = project(model.run(corrupted, lambda *_: None, edits={end: third}))[0]
    found = along(model, path, theirs, corrupted)
    assert path.into(dims)[2] == (end, 2)
    torch.testing.assert_close(found[2], due, rtol=1e-9, atol=1e-12)


# --- right ports --------------------------------------------------------------------------------


def test_a_right_port_fails_where_it_is_known_to_alone(bench: Bench) -> None:
    found = bench._invariants(CHECK)[CHECK]
    failing = {str(c.site).split(".", 2)[-1] for c in found if not c.ok}
    assert failing == KNOWN
    exact = [c for c in found if c.judgement == "exact"]
    assert all(c.ok for c in exact)
    streams = {c.site for c in exact if "stream" in str(c.prompt)}
    kinds = ("resid_pre", "resid_mid", "resid_post")
    assert streams == {
        *(f"blocks.{layer}.{kind}" for layer in range(4) for kind in kinds),
        *("blocks.2.resid_cross", "blocks.3.resid_cross"),
    }
    assert sum("both patched" in str(c.prompt) for c in exact) == 8
    assert sum("every branch" in str(c.prompt) for c in exact) == 1


def test_what_the_library_refuses_is_not_its_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens import patching

    from conformance.checks.patching import Patching

    check: Check = Patching()
    subject = bench.exact
    _, corrupted = prompts(subject.dims, Scope.of(subject.dims))

    def told() -> list[Any]:
        return list(refused(check, subject, corrupted, ({}, {})))

    (raised,) = told()
    assert (raised.site, raised.ok) == (SWEPT, False)
    assert "get_act_patch_resid_pre: KeyError: 'blocks.0.hook_resid_pre'" in raised.note

    def refuses(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("two stacks")

    for name in [n for n in vars(patching) if n.startswith("get_act_patch")]:
        keywords = getattr(getattr(patching, name), "keywords", None)
        wrong = lambda *args, **kwargs: refuses()  # noqa: E731
        wrong.keywords = keywords  # type: ignore[attr-defined]
        monkeypatch.setattr(patching, name, wrong)
    assert told() == []
    assert check.metrics["not_applicable"]["get_act_patch_resid_pre"] == "two stacks"


# --- wrong ports --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUGHT)
def test_faults_of_patches_are_caught_and_named(name: str, bench: Bench) -> None:
    fault = CATALOGUE[name]
    assert bench.provable(fault)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.site_named, proof.named


def test_faults_of_sweeps_do_not_apply(bench: Bench) -> None:
    known = {name for name, fault in CATALOGUE.items() if fault.needs == CHECK}
    assert known == {*CAUGHT, *ONE_STACK}
    assert not any(bench.provable(CATALOGUE[name]) for name in ONE_STACK)
