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


def test_a_decoder_is_given_the_tokens_one_place_late() -> None:
    """By hand: two positions, two words."""
    logits = torch.tensor([[[0.0, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    tokens = torch.tensor([[1, 0]])
    found = token_losses(logits, tokens, next_token=False)
    expected = torch.tensor([[2.0, 1 + torch.e**-3]], dtype=torch.float64).log()
    torch.testing.assert_close(found, expected)
