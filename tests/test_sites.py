"""Names of sites: round trips, order, and what is refused."""

from __future__ import annotations

import random

import pytest

from conformance.sites import (
    BLOCK_KINDS,
    GLOBAL_KINDS,
    KINDS,
    Order,
    Site,
    computation_order,
    parse,
)

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


def test_norms_of_the_stream_come_after_what_was_added_to_it() -> None:
    names = ["blocks.0.resid_post", "blocks.0.ln2", "blocks.0.mlp_out", "blocks.0.resid_mid"]
    names += ["blocks.0.ln1", "blocks.0.attn_out", "blocks.0.attn.q", "blocks.0.resid_pre"]
    assert computation_order(names, Order(post_norm=True)) == list(reversed(names))
    usual = computation_order(names)
    assert usual.index("blocks.0.ln1") < usual.index("blocks.0.attn.q")


def test_rotated_queries_may_be_normalised_afterwards() -> None:
    names = ["blocks.0.attn.q_normed", "blocks.0.attn.rot_q"]
    assert computation_order(names) == names
    assert computation_order(names, Order(norms_last=True)) == list(reversed(names))


def test_an_encoder_ends_before_its_decoder_begins() -> None:
    names = ["embed", "blocks.1.resid_post", "ln_encoder", "blocks.2.resid_pre", "ln_final"]
    assert computation_order(sorted(names), Order(encoder=2)) == names


def test_positions_come_first_where_a_norm_reads_their_sum_with_tokens() -> None:
    assert computation_order(["pos_embed", "embed"]) == ["embed", "pos_embed"]
    order = Order(positions_first=True)
    assert computation_order(["embed", "pos_embed"], order) == ["pos_embed", "embed"]
