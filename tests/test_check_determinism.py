"""The same run twice is the same; what is not, or leaves something behind, is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import twins

from conformance.checks.base import Check, Context
from conformance.checks.determinism import Determinism
from conformance.checks.state import State, hooks_of
from conformance.faults import state

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench
    from conformance.records import Comparison

MODEL = twins.twin_model("llama", prompts=("sixteen", "two"))


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    return Bench.load(MODEL, "bridge", twin_cache, prompts=("two",))


def judged(bench: Bench) -> tuple[list[Comparison], Check]:
    check = Determinism()
    context = Context(bench.reference, bench.exact, fresh=bench._fresh)
    check.comparisons.extend(check.exact(context))
    return check.comparisons, check


def test_a_right_port_repeats_itself(bench: Bench) -> None:
    comparisons, check = judged(bench)
    assert [c for c in comparisons if not c.ok] == []
    assert check.metrics == {}
    places = {c.site for c in comparisons if c.prompt == "sixteen, in a port loaded anew"}
    assert {"logits", "embed", "blocks.1.attn.pattern", "blocks.2.resid_post"} <= places


@pytest.mark.parametrize("fault", state.FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: state.Fault, bench: Bench) -> None:
    assert fault.applies(bench.exact)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def test_what_other_checks_leave_behind_is_found(bench: Bench) -> None:
    model = bench.exact.model
    weight = model.blocks[0].mlp.out.weight
    model.cfg.use_attn_result = True
    model.blocks[2].hook_resid_post.add_hook(lambda tensor, hook: None)
    weight.grad = torch.ones_like(weight)
    try:
        failures = [c for c in judged(bench)[0] if not c.ok and c.site is not None]
    finally:
        model.cfg.use_attn_result = False
        model.reset_hooks()
        weight.grad = None
    notes = {str(c.site): c.note for c in failures}
    assert "cfg changed since loading" in notes["use_attn_result"]
    assert notes["blocks.2.hook_out"].startswith("a hook was left on it")
    assert any("mlp" in site and "gradient since loading" in note for site, note in notes.items())
    assert [c for c in judged(bench)[0] if not c.ok] == []


def test_gradients_turned_off_for_good_are_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench.exact.model.run_with_cache

    def wrong(*args: object, **kwargs: object) -> object:
        torch.set_grad_enabled(False)
        return right(*args, **kwargs)

    monkeypatch.setattr(bench.exact.model, "run_with_cache", wrong)
    failures = [c for c in judged(bench)[0] if not c.ok]
    assert [c.note for c in failures] == ["gradients were on before the run, and not after"]


def test_a_state_is_the_bits_of_everything_held(bench: Bench) -> None:
    before = State.of(bench.exact)
    weight = next(iter(bench.exact.model.parameters()))
    with torch.no_grad():
        weight.view(-1)[0].neg_()
    try:
        changed = [c for c in State.of(bench.exact).changed_since(before, "by hand") if not c.ok]
    finally:
        with torch.no_grad():
            weight.view(-1)[0].neg_()
    assert any("changed by hand" in c.note for c in changed)
    assert all(c.ok for c in State.of(bench.exact).changed_since(before, "by hand"))


def test_hooks_that_transformers_installs_for_good_are_not_counted(bench: Bench) -> None:
    from transformers.utils.output_capturing import install_all_output_capturing_hooks

    before = hooks_of(bench.exact)
    layer = bench.exact.model.original_model.model.layers[0]
    by_hand = layer.register_forward_hook(lambda *_: None)
    try:
        assert sum(hooks_of(bench.exact).values()) == sum(before.values()) + 1
        stores = [m._forward_hooks for m in bench.exact.model.original_model.modules()]
        held = [set(store) for store in stores]
        install_all_output_capturing_hooks(bench.exact.model.original_model)
        installed = sum(len(set(s) - h) for s, h in zip(stores, held, strict=True))
        assert installed > 0
        assert sum(hooks_of(bench.exact).values()) == sum(before.values()) + 1
        for store, kept in zip(stores, held, strict=True):
            for key in set(store) - kept:
                del store[key]
    finally:
        by_hand.remove()
    assert hooks_of(bench.exact) == before
