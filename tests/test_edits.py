"""Edits of the reference act where they say, on everything after and on nothing before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import twins

from conformance.implementations.base import UNEDITABLE
from conformance.prompts import Prompt, build
from conformance.sites import parse

if TYPE_CHECKING:
    from pathlib import Path

#: One for each way in which a site is tapped: separate and fused projections in each layout,
#: grouped heads, heads in the batch, norms after a branch, after the rotation and before a
#: projection, one norm called twice, experts, sinks, scaled branches, positions of three kinds.
KINDS = (
    "gpt2",
    "llama",
    "gemma2",
    "gpt-oss",
    "gpt-neox",
    "falcon-7b",
    "falcon-40b",
    "phi3",
    "bloom",
    "opt",
    "qwen3-moe",
    "olmo2",
    "granite",
    "cohere",
    "codegen",
    "hunyuan",
    "nanochat",
    "bitnet",
    "xglm",
    "pegasus",
    "t5gemma",
    "led",
)


def editable(plain: twins.Run) -> list[str]:
    return [site for site in plain.sites if parse(site).kind not in UNEDITABLE]


def prompt(twin: str, cache: Path, rows: int = 1) -> Prompt:
    (built,), _ = build(twins.huggingface(twin, cache).dims, None, ("sixteen",))
    return Prompt(built.name, built.tokens.repeat(rows, 1))


@pytest.mark.parametrize("twin", KINDS)
def test_an_edit_that_changes_nothing_changes_nothing(twin: str, twin_cache: Path) -> None:
    model, plain = twins.huggingface(twin, twin_cache), twins.ran(twin, twin_cache)
    edits = {site: (lambda t: t) for site in editable(plain)}

    logits = model.run(plain.prompt, lambda *_: None, edits=edits)

    assert torch.allclose(
        logits, plain.logits, rtol=0, atol=1e-12 * float(plain.logits.abs().max())
    )


@pytest.mark.parametrize("twin", KINDS)
def test_every_site_can_be_zeroed(twin: str, twin_cache: Path) -> None:
    model, plain = twins.huggingface(twin, twin_cache), twins.ran(twin, twin_cache)
    for site in editable(plain):
        seen: dict[str, torch.Tensor] = {}
        logits = model.run(
            plain.prompt,
            lambda name, t, seen=seen: seen.update({name: t.clone()}),  # type: ignore[misc]
            edits={site: torch.zeros_like},
        )
        assert not seen[site].any(), site
        assert not torch.allclose(logits, plain.logits, rtol=1e-6), f"{site}: no effect"
        layer = parse(site).layer
        for earlier in range(layer or 0):
            before = f"blocks.{earlier}.resid_post"
            assert torch.equal(seen[before], plain[before])


@pytest.mark.parametrize("twin", KINDS)
def test_rows_of_a_batch_are_edited_apart(twin: str, twin_cache: Path) -> None:
    model, plain = twins.huggingface(twin, twin_cache), twins.ran(twin, twin_cache)
    sites = editable(plain)
    batch = prompt(twin, twin_cache, rows=len(sites) + 1)

    def zero_row(row: int, site: str):  # type: ignore[no-untyped-def]
        def edit(t: torch.Tensor) -> torch.Tensor:
            changed = t.clone()
            per = (
                changed.unflatten(0, (len(sites) + 1, -1))
                if parse(site).axes[0] == "token"
                else changed
            )
            per[row] = 0
            return changed

        return edit

    edits = {site: zero_row(row, site) for row, site in enumerate(sites)}
    logits = model.run(batch, lambda *_: None, edits=edits)

    scale = float(plain.logits.abs().max())
    assert torch.allclose(logits[-1:], plain.logits, rtol=0, atol=1e-12 * scale)
    for row, site in enumerate(sites):
        alone = model.run(plain.prompt, lambda *_: None, edits={site: torch.zeros_like})
        assert torch.allclose(logits[row : row + 1], alone, rtol=0, atol=1e-10 * scale), site


def test_an_edit_in_the_middle_of_a_block_reaches_the_sum_after_the_mlp(twin_cache: Path) -> None:
    model, plain = twins.huggingface("llama", twin_cache), twins.ran("llama", twin_cache)
    seen: dict[str, torch.Tensor] = {}

    model.run(
        plain.prompt,
        lambda name, t: seen.update({name: t.clone()}),
        edits={"blocks.1.resid_mid": lambda t: t + 1.0},
    )

    expected = plain["blocks.1.resid_mid"] + 1.0 + seen["blocks.1.mlp_out"]
    assert torch.allclose(seen["blocks.1.resid_post"], expected, rtol=1e-13)


def test_a_probe_gives_the_gradient_of_a_site(twin_cache: Path) -> None:
    model, plain = twins.huggingface("gpt-oss", twin_cache), twins.ran("gpt-oss", twin_cache)
    assert "blocks.1.attn.pattern" in plain.sites
    for site in ("blocks.1.attn.pattern", "blocks.1.resid_mid", "blocks.0.attn.rot_k"):
        probe = torch.zeros_like(plain[site], requires_grad=True)
        logits = model.run(
            plain.prompt, lambda *_: None, edits={site: lambda t, p=probe: t + p}, grad=True
        )
        target = logits[0, -1].square().sum()
        (gradient,) = torch.autograd.grad(target, probe)
        step = 1e-6 * torch.randn(
            probe.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )

        def moved(sign: int, step: torch.Tensor = step, site: str = site) -> torch.Tensor:
            edit = {site: lambda t: t + sign * step}
            return model.run(plain.prompt, lambda *_: None, edits=edit)[0, -1].square().sum()

        central = (moved(1) - moved(-1)) / 2
        assert float((gradient * step).sum()) == pytest.approx(float(central), rel=1e-6), site
