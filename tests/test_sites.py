"""Names of sites: round trips, order, and what is refused."""

from __future__ import annotations

import random

import pytest

from conformance.sites import BLOCK_KINDS, GLOBAL_KINDS, KINDS, Site, computation_order, parse

ALL = [*GLOBAL_KINDS, *BLOCK_KINDS]
AXES = {
    "batch",
    "pos",
    "token",
    "query",
    "key",
    "head",
    "kv_head",
    "d_head",
    "d_head_v",
    "d_model",
    "d_mlp",
    "d_qk",
    "expert",
    "d_vocab",
}


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.name)
def test_a_name_round_trips(kind) -> None:
    site = Site(kind.name, 12 if kind in BLOCK_KINDS else None)
    assert parse(str(site)) == site
    assert site.axes == kind.axes
    assert site.component == kind.component
    assert set(kind.axes) <= AXES


def test_kinds_are_unique() -> None:
    assert len(KINDS) == len(ALL)


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "blocks.0.nonsense",
        "blocks.0.logits",
        "attn.q",
        "blocks.x.attn.q",
        "blocks.1",
        "",
        "blocks.0.attn.W_Q",
    ],
)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is int()'s or ours
        parse(name)


def test_layers_and_kinds_must_fit() -> None:
    with pytest.raises(ValueError, match="logits with layer 3"):
        Site("logits", 3)
    with pytest.raises(ValueError, match=r"attn\.q with layer None"):
        Site("attn.q")


def test_order_of_computation() -> None:
    layers = [f"blocks.{i}.{k.name}" for i in (0, 1, 2, 10) for k in BLOCK_KINDS]
    ordered = ["embed", "pos_embed", *layers, "ln_final", "logits"]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert computation_order(shuffled) == ordered
    assert computation_order([]) == []
