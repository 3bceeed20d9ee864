"""Which components a port must have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from conformance.checks.components import _expected_components
from conformance.families.decoders import LLAMA
from conformance.sites import BLOCK_KINDS


def expected(hidden: set[str]) -> list[str]:
    subject = SimpleNamespace(
        family=LLAMA,
        dims=SimpleNamespace(n_layers=1),
        expected_hooks=lambda: ({}, dict.fromkeys(hidden, "why")),
    )
    return _expected_components(cast("Any", SimpleNamespace(subject=subject)))


def test_a_component_is_due_while_any_of_its_sites_is_shown() -> None:
    of_mlp = {k.name for k in BLOCK_KINDS if k.component == "mlp"}
    assert "blocks.0.mlp" in expected(set())
    assert "blocks.0.mlp" in expected(of_mlp - {"mlp_out"})
    assert "blocks.0.mlp" not in expected(of_mlp)
    assert "blocks.0.attn" in expected(of_mlp)
