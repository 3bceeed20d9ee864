"""Sites: the named places of a forward pass, in TransformerLens's words.

A site is a kind (``resid_pre``, ``attn.pattern``, ``logits``, ...) and a layer or none; its
name is ``blocks.{layer}.{kind}`` or the kind itself. Axes name the dimensions, so that one
piece of code knows which positions are padding and which entries a mask forbids.

Of an encoder and a decoder, the encoder's layers come first: with three of them, ``blocks.3`` is
the decoder's first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SiteKind:
    """One kind of site.

    Attributes:
        name: its name without the layer.
        axes: its dimensions, in order, out of ``batch pos token query key head kv_head d_head
            d_head_v d_model d_mlp d_qk expert d_vocab``. ``token`` is batch and pos flattened.
        component: the component that produces it, for localisation.
    """

    name: str
    axes: tuple[str, ...]
    component: str


_RESID = ("batch", "pos", "d_model")
_HEADS = ("batch", "pos", "head", "d_head")
_KV = ("batch", "pos", "kv_head", "d_head")
_VALUES = ("batch", "pos", "kv_head", "d_head_v")
_MIXED = ("batch", "pos", "head", "d_head_v")
_SQUARE = ("batch", "head", "query", "key")
_MLP = ("batch", "pos", "d_mlp")

#: Sites inside a block, in the order in which a sequential pre-norm block computes them.
BLOCK_KINDS: tuple[SiteKind, ...] = (
    SiteKind("resid_pre", _RESID, "wiring"),
    SiteKind("ln_pre", _RESID, "ln_pre"),
    SiteKind("ln1", _RESID, "ln1"),
    SiteKind("attn.q", _HEADS, "attn"),
    SiteKind("attn.k", _KV, "attn"),
    SiteKind("attn.v", _VALUES, "attn"),
    SiteKind("attn.q_normed", _HEADS, "attn"),
    SiteKind("attn.k_normed", _KV, "attn"),
    SiteKind("attn.v_normed", _VALUES, "attn"),
    SiteKind("attn.rot_q", _HEADS, "attn"),
    SiteKind("attn.rot_k", _KV, "attn"),
    SiteKind("attn.scores", _SQUARE, "attn"),
    SiteKind("attn.pattern", _SQUARE, "attn"),
    SiteKind("attn.z", _MIXED, "attn"),
    SiteKind("attn.out", _RESID, "attn"),
    SiteKind("attn_out", _RESID, "attn"),
    SiteKind("mixer_out", _RESID, "mixer"),
    SiteKind("resid_mid", _RESID, "wiring"),
    SiteKind("ln_cross", _RESID, "ln_cross"),
    SiteKind("cross_attn.q", _HEADS, "cross"),
    SiteKind("cross_attn.k", _KV, "cross"),
    SiteKind("cross_attn.v", _VALUES, "cross"),
    SiteKind("cross_attn.scores", _SQUARE, "cross"),
    SiteKind("cross_attn.pattern", _SQUARE, "cross"),
    SiteKind("cross_attn.z", _MIXED, "cross"),
    SiteKind("cross_attn_out", _RESID, "cross"),
    SiteKind("resid_cross", _RESID, "wiring"),
    SiteKind("ln2", _RESID, "ln2"),
    SiteKind("mlp.router_logits", ("token", "expert"), "mlp"),
    SiteKind("mlp.pre", _MLP, "mlp"),
    SiteKind("mlp.pre_linear", _MLP, "mlp"),
    SiteKind("mlp.post", _MLP, "mlp"),
    SiteKind("mlp.out", _RESID, "mlp"),
    SiteKind("mlp_out", _RESID, "mlp"),
    SiteKind("per_layer_out", _RESID, "per_layer"),
    SiteKind("resid_post", _RESID, "wiring"),
)

GLOBAL_KINDS: tuple[SiteKind, ...] = (
    SiteKind("embed", _RESID, "embed"),
    SiteKind("pos_embed", _RESID, "embed"),
    SiteKind("ln_encoder", _RESID, "ln_encoder"),
    SiteKind("ln_final", _RESID, "ln_final"),
    SiteKind("logits", ("batch", "pos", "d_vocab"), "unembed"),
)

KINDS: Mapping[str, SiteKind] = {k.name: k for k in (*BLOCK_KINDS, *GLOBAL_KINDS)}
_BLOCK_NAMES = frozenset(k.name for k in BLOCK_KINDS)


@dataclass(frozen=True, slots=True)
class Site:
    """A place in one model: a kind, and a layer where the kind is inside a block."""

    kind: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no site kind {self.kind!r}; known: {', '.join(KINDS)}")
        if (self.layer is not None) != (self.kind in _BLOCK_NAMES):
            raise ValueError(f"{self.kind} with layer {self.layer}")

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"blocks.{self.layer}.{self.kind}"

    @property
    def axes(self) -> tuple[str, ...]:
        return KINDS[self.kind].axes

    @property
    def component(self) -> str:
        return KINDS[self.kind].component


def parse(name: str) -> Site:
    """The inverse of ``str(site)``.

    Raises:
        ValueError: no such site.
    """
    if name.startswith("blocks."):
        _, layer, kind = name.split(".", 2)
        return Site(kind, int(layer))
    return Site(name)


@dataclass(frozen=True, slots=True)
class Order:
    """How an architecture's order of computation differs from a sequential pre-norm block's.

    Attributes:
        post_norm: norms of the stream come after what was added to it (Vaswani et al. 2017).
        norms_last: queries and keys are rotated first, and normalised then.
        encoder: how many layers come before ``ln_encoder``.
        positions_first: ``embed`` is after a norm of the sum of tokens and positions.
    """

    post_norm: bool = False
    norms_last: bool = False
    encoder: int = 0
    positions_first: bool = False

    def ranks(self) -> dict[str, int]:
        """Kind of site in a block -> its place."""
        names = [k.name for k in BLOCK_KINDS]
        after: dict[str, str] = {}
        if self.post_norm:
            after |= {"ln1": "mixer_out", "ln_cross": "cross_attn_out", "ln2": "mlp_out"}
        if self.norms_last:
            after |= {"attn.k_normed": "attn.rot_k", "attn.q_normed": "attn.rot_k"}
        for moved, to in after.items():
            names.remove(moved)
            names.insert(names.index(to) + 1, moved)
        return {name: i for i, name in enumerate(names)}


USUAL = Order()


def computation_order(names: list[str], order: Order = USUAL) -> list[str]:
    """Sort site names by where the forward pass computes them: embedding, layers, head."""
    block = order.ranks()
    last = {"ln_final": 0, "logits": 1}
    first = {"pos_embed": 0, "embed": 1} if order.positions_first else {"embed": 0, "pos_embed": 1}

    def key(name: str) -> tuple[int, int, int]:
        site = parse(name)
        if site.layer is not None:
            return (1, site.layer, block[site.kind])
        if site.kind == "ln_encoder":
            return (1, order.encoder, -1)
        if site.kind in first:
            return (0, 0, first[site.kind])
        return (2, 0, last[site.kind])

    return sorted(names, key=key)
