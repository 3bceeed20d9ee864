"""An encoder and a decoder: what is judged of them beyond one forward pass, and what fails it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import twins

from conformance.metrics import token_losses

if TYPE_CHECKING:
    from pathlib import Path

CHECKS = ("loss", "gradients", "batching")


def _judged(subject: str, cache: Path, *checks: str) -> dict[str, Any]:
    model = twins.twin_model("mbart", prompts=("sixteen", "padded_right"))
    loader = None if subject == "bridge" else f"declared_subjects:{subject}"
    return twins.judge(model, subject, cache, loader=loader, checks=checks or CHECKS)


def test_the_port_passes(twin_cache: Path) -> None:
    records = _judged("bridge", twin_cache)
    assert {c: r["outcome"] for c, r in records.items()} == dict.fromkeys(CHECKS, "passed")
    assert records["loss"]["verdict"]["same_function"]["compared"] == 4
    assert records["gradients"]["verdict"]["same_function"]["compared"] > 50


@pytest.mark.parametrize(
    ("subject", "check", "first"),
    [
        ("other_loss", "loss", "logits"),
        ("detached", "gradients", "blocks.1.mlp.W_out.grad"),
        ("rows_mixed", "batching", "logits"),
    ],
)
def test_what_is_wrong_fails_where_it_is(
    subject: str, check: str, first: str, twin_cache: Path
) -> None:
    record = _judged(subject, twin_cache, check)[check]
    assert record["outcome"] == "failed"
    assert record["first_divergence"] == first


def test_a_hook_that_never_fires_in_a_decoder_is_told(twin_cache: Path) -> None:
    """Beside what the port shows wrongly without it: docs/findings/004 and 016."""
    record = _judged("silent_in_a_decoder", twin_cache, "hooks")["hooks"]
    notes = [c["note"] for c in record["worst"] if c["site"] == "blocks.2.attn.z"]
    assert any("fires 0 times in a forward pass" in note for note in notes), record["worst"]


def test_no_gradient_is_due_where_nothing_learned_leads(twin_cache: Path) -> None:
    """M2M100's positions are sinusoids: no backward hook could fire there. mBART's are learned."""
    from conformance.experiments.base import Scope
    from conformance.experiments.gradients import at_sites

    shown = {}
    for twin in ("m2m100", "mbart"):
        model = twins.huggingface(twin, twin_cache)
        scope = Scope.of(model.dims)
        shown[twin] = set(at_sites(model, scope, ["embed", "pos_embed"]))
    assert shown == {"m2m100": {"embed"}, "mbart": {"embed", "pos_embed"}}


def test_a_view_of_one_row_for_a_batch_is_told() -> None:
    from conformance.checks.batching import _like_alone
    from conformance.experiments.batching import padded

    prompt = padded([torch.arange(1, 4), torch.arange(1, 6)], "right")
    name = "blocks.0.attn.pattern"
    views = {name: torch.zeros(1, 2, 5, 5)}
    (found,) = _like_alone(None, views, views, prompt, 1, "right")  # type: ignore[arg-type]
    assert (found.site, found.ok, found.note) == (name, False, "shows 1 rows, the batch has 2")


def test_a_decoder_is_given_the_tokens_one_place_late() -> None:
    """By hand: two positions, two words."""
    logits = torch.tensor([[[0.0, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    tokens = torch.tensor([[1, 0]])
    found = token_losses(logits, tokens, next_token=False)
    expected = torch.tensor([[2.0, 1 + torch.e**-3]], dtype=torch.float64).log()
    torch.testing.assert_close(found, expected)
