"""Gradients against the reference's: right ports agree, and what breaks one is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import twins

from conformance.checks.gradients import _backwards
from conformance.experiments.base import Scope
from conformance.experiments.gradients import WIDTH, entries, of_weights, projected
from conformance.faults import CATALOGUE, backward

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.faults import Fault
    from conformance.prove.bench import Bench


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import Bench

    return Bench.load(
        twins.twin_model("llama", prompts=("sixteen", "two")),
        "bridge",
        twin_cache,
        prompts=("two",),
    )


def test_a_right_port_has_the_references_gradients(bench: Bench) -> None:
    comparisons = bench._invariants("gradients")["gradients"]
    assert [c for c in comparisons if not c.ok] == []
    sites = {c.site for c in comparisons}
    assert {"logits", "embed.grad", "embed.W_E.grad", "unembed.W_U.grad"} <= sites
    assert {"blocks.0.attn.W_K.grad", "blocks.2.mlp.W_gate.grad", "blocks.1.ln2.w.grad"} <= sites
    assert "blocks.1.resid_post.grad" in sites
    assert all(p.grad is None for p in bench.exact.model.parameters())


@pytest.mark.parametrize("fault", backward.FAULTS, ids=lambda fault: fault.name)
def test_faults_are_caught_and_named(fault: Fault, bench: Bench) -> None:
    assert fault.applies(bench.exact)
    proof = bench.prove(fault)
    assert proof.caught
    assert proof.named in proof.site_true


def test_a_fault_behind_a_multiplier_is_in_runs_without_hooks(twin_cache: Path) -> None:
    """Granite's blocks call the hook point of a branch only if it has hooks."""
    from conformance.checks.gradients import _of_parameters
    from conformance.prove.bench import Bench

    bench = Bench.load(twins.twin_model("granite", prompts=("sixteen",)), "bridge", twin_cache)
    (prompt,) = bench.reference.prompts
    _, right = _of_parameters(bench.exact, prompt)
    with CATALOGUE["gradient_halved"].apply(bench.exact):
        _, wrong = _of_parameters(bench.exact, prompt)
    assert any(
        w is not None and r is not None and not w.equal(r)
        for w, r in zip(wrong.values(), right.values(), strict=True)
    )


def test_a_weight_without_a_gradient_is_said_to_be_detached(bench: Bench) -> None:
    (frozen,) = (f for f in backward.FAULTS if f.name == "attention_frozen")
    with frozen.apply(bench.exact):
        comparisons = bench._run_check("gradients")["gradients"]
    failures = {str(c.site): c for c in comparisons if not c.ok}
    assert set(failures) == {f"blocks.1.attn.W_{w}.grad" for w in "QKVO"}
    for failure in failures.values():
        assert failure.note.startswith("detached: no gradient; the reference's is up to ")
        assert failure.measured == 1.0


# --- the reference's gradients ------------------------------------------------------------------


def test_a_weights_gradient_is_what_moving_it_does(twin_cache: Path) -> None:
    from conformance.experiments.gradients import loss_of
    from conformance.experiments.rows import prompt_of

    model = twins.huggingface("gpt2", twin_cache)
    scope = Scope.of(model.dims)
    name = "transformer.h.1.attn.c_attn.weight"
    gradient = of_weights(model, scope)[name]
    weight = dict(model.model.named_parameters())[name]
    step = 1e-6 * torch.randn(
        weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    prompt, before = prompt_of(model.dims, scope), weight.detach().clone()

    def loss(sign: int) -> float:
        with torch.no_grad():
            weight.copy_(before + sign * step)
            return float(loss_of(model, model.run(prompt, lambda *_: None), prompt.tokens))

    central = (loss(1) - loss(-1)) / 2
    with torch.no_grad():
        weight.copy_(before)
    assert central == pytest.approx(float((gradient * step).sum()), rel=1e-7)


def test_wide_gradients_are_projected_and_key_biases_join_their_weight(twin_cache: Path) -> None:
    model = twins.huggingface("gpt2", twin_cache)
    assert projected(torch.ones(3, WIDTH)).shape == (3, WIDTH)
    assert projected(torch.ones(2, 3, 40, dtype=torch.float64)).shape == (2, 3, WIDTH)
    assert projected(torch.ones(40)).shape == (40,)
    found = entries(of_weights(model, Scope.of(model.dims)), model.family, model.dims)
    assert "blocks.0.attn.b_K" not in found
    d = model.dims
    assert found["blocks.0.attn.W_K"].numel() == d.n_heads * d.d_head * (d.d_model + 1)


def test_names_come_in_the_order_of_backpropagation() -> None:
    names = [
        "weight/unembed.W_U",
        "weight/ln_final.w",
        "site/blocks.1.resid_post",
        "weight/blocks.1.mlp.W_out",
        "weight/blocks.1.ln2.w",
        "weight/blocks.1.attn.W_O",
        "weight/blocks.1.attn.W_V",
        "weight/blocks.1.attn.W_Q",
        "weight/blocks.1.ln1.w",
        "site/blocks.1.resid_pre",
        "site/blocks.0.resid_post",
        "site/embed",
        "weight/embed.W_E",
    ]
    assert sorted(names, key=_backwards) == names
