"""Hooks: right ports keep what the library promises, and what breaks a promise is named."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
import twins

from conformance import experiments
from conformance.checks.base import Context
from conformance.checks.hook_table import BEFORE_NORMS_LAST, out_of_order, published, shape
from conformance.checks.hooks import Hooks
from conformance.experiments import store
from conformance.experiments.hooks import EXPERIMENT
from conformance.experiments.rows import prompt_of
from conformance.faults import hook_points
from conformance.verdicts import first_divergence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conformance.faults import Fault
    from conformance.prove.bench import Bench
    from conformance.records import Comparison

#: A parallel block: it has no resid_mid, whose backward hook is wrong in the library itself.
MODEL = twins.twin_model("gpt-neox", prompts=("sixteen", "two"))


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Iterator[Bench]:
    from conformance.prove.bench import Bench

    found = Bench.load(MODEL, "bridge", twin_cache, prompts=("two",))
    with pytest.MonkeyPatch.context() as patch:
        if "hooks" not in experiments._MODULES:
            patch.setattr(store, "experiment", {"hooks": EXPERIMENT}.get)
            patch.setattr(store, "code_hashes", lambda: {"hooks": "0"})
        store.ensure(MODEL, found.checkpoint, found.reference.path, ("hooks",), lambda _: None)
        yield found


def judged(bench: Bench) -> list[Comparison]:
    check = Hooks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a port's warnings are its own
        check.comparisons.extend(check.exact(Context(bench.reference, bench.exact)))
    return check.comparisons


def test_a_right_port_keeps_its_promises(bench: Bench) -> None:
    comparisons = judged(bench)
    assert [c for c in comparisons if not c.ok] == []
    said = {c.prompt for c in comparisons}
    assert {
        "sixteen twice, after the run",
        "sixteen twice, cached",
        "sixteen, names_filter",
        "sixteen, stop_at_layer",
        "sixteen, remove_batch_dim",
        "sixteen, pos_slice=8",
        "sixteen, backward hook",
        "sixteen, run_with_cache(incl_bwd=True)",
        "sixteen twice, use_attn_in",
        "sixteen twice, use_hook_mlp_in",
        "sixteen twice, after a hook raised",
    } <= said
    model = bench.exact.model
    assert not model.cfg.use_attn_in
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("fault", hook_points.FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: Fault, bench: Bench) -> None:
    assert fault.applies(bench.exact)
    with fault.apply(bench.exact):
        failures = [c for c in judged(bench) if not c.ok]
    assert failures
    assert first_divergence(failures) in fault.sites(bench.exact)


def test_shapes_are_those_of_the_sites(bench: Bench) -> None:
    context = Context(bench.reference, bench.exact)
    table, d = published(context), bench.exact.dims
    prompt = prompt_of(d, context.scope)
    pattern = table["blocks.0.attn.hook_pattern"]
    assert shape(context, prompt, pattern) == (1, d.n_heads, 16, 16)
    assert shape(context, prompt, table["blocks.2.ln1.hook_scale"]) == (1, 16, 1)


def test_only_what_depends_on_each_other_has_an_order() -> None:
    right = ["embed", "blocks.0.resid_pre", "blocks.0.attn.k", "blocks.0.attn.q"]
    assert list(out_of_order(right, {})) == []
    late = ["blocks.0.attn.z", "blocks.0.attn.pattern"]
    assert list(out_of_order(late, {})) == [("blocks.0.attn.pattern", "blocks.0.attn.z")]
    assert list(out_of_order(late, dict.fromkeys(late, 1))) == []
    normed_last = ["blocks.0.attn.q", "blocks.0.attn.rot_q", "blocks.0.attn.q_normed"]
    assert list(out_of_order(normed_last, {})) == [
        ("blocks.0.attn.q_normed", "blocks.0.attn.rot_q")
    ]
    assert list(out_of_order(normed_last, {}, BEFORE_NORMS_LAST)) == []
    other = normed_last[::-1]
    assert ("blocks.0.attn.rot_q", "blocks.0.attn.q_normed") in out_of_order(
        other, {}, BEFORE_NORMS_LAST
    )
