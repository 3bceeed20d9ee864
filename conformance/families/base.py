"""The description of one architecture.

Fields that are None mean that the architecture has no such module; :meth:`Family.absent` turns
them into the reason that a report gives.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from conformance.sites import Order

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, as HuggingFace lays it out.

    Attributes:
        architecture: the HuggingFace class name.
        block: path of one block.
        embed, pos_embed, embed_ln: token embedding, learned positions, norm after embedding (which
            may be the final one, called twice).
        unembed: the head's last map; None where there is no head: what the model returns, the last
            hidden states, stands for logits.
        unembed_bias: where its bias is a parameter of its own.
        transform: what lies between the last block and the final norm.
        head: what lies between the final norm and the unembedding and is not linear.
        shortformer: positions are added to what queries and keys are made of, and not to the stream
            (Press et al. 2021).
        pos_offset: rows of the position table before position 0 (OPT keeps 2).
        type_embed: embeddings of token types (first or second sentence).
        own_positions: the model counts positions itself, from its padding token.
        ln_pre: norm of the stream itself, before anything else in the block.
        ln1, ln1_post, ln2, ln2_post: norms before and after attention and MLP, relative to the
            block.
        post_norm: ln1 and ln2 are norms of the stream itself, after attention's and after the MLP's
            output was added (Vaswani et al. 2017): ``resid_mid`` is what ln1 returns.
        causal: a token sees no later one.
        encoder: how many layers are an encoder's, whose output the others, the decoder's, attend
            to; 0 where there is one stack. ``layers`` then describes every layer, with its path.
        encoder_ln_final: the norm after the encoder's last layer.
        embed_weight: where its table is a parameter, if not in ``embed`` itself.
        windowed: the encoder sees a window around each token and, from and to the first, all
            (Beltagy et al. 2020), and pads its input to whole windows: its sites are cut to it.
        unembed_weight: where its table is a parameter, if neither in ``unembed`` nor in ``embed``.
        ln_cross, cross, cross_q, cross_k, cross_v, cross_o: the decoder's attention to the encoder,
            its projections and the norm before it (after it and its sum where ``post_norm``).
        ln_cross_post: the norm of its output, before it is added.
        attn: the attention module, relative to the block; ``o`` its output projection. None in
            a block that has none; ``o`` also where no one projection is every token's.
        mixer: what mixes positions in attention's place, or beside it: a state-space model, a
            linear attention, a short convolution. Its parameters keep HuggingFace's names, and
            ``mixer_out`` is what its module returns, before any multiplier.
        kv_latent: in latent attention, the projection from a latent to the unrotated part of each
            head's key, and its value.
        q, k, v: separate projections; or ``qkv`` fused, laid out as ``qkv_layout``:
            ``concat`` (all q, all k, all v), ``per_head`` (q, k, v of head 0, of head 1, ...),
            ``grouped`` (queries of a group, its key, its value; next group),
            ``quarters`` (a quarter of all heads: their q, v, k; next quarter).
        qk_norm: norms of q and k over each head (``per_head``: applied to [batch, pos, head,
            d_head]; ``per_head_transposed``: to [batch, head, pos, d_head]) or over all heads
            at once (``full``).
            One module may be both: queries' first.
        q_multiplier: what queries are multiplied by after their norm; ``attn.q_normed`` is then.
        qk_norm_rotated: the norms read what is rotated already.
        v_norm: norm of the values over each head, [batch, pos, head, d_head].
        kv_from: the layer whose rotated keys and mixed values serve this one too, which has none of
            its own (``k`` and ``v`` are None). With ``k`` and without ``v``, values are made of
            what ``k`` gives.
        o_norm: norm over all heads' outputs at once, before ``o``; ``z`` is what it returns.
        down_norm: norm of the MLP's activations before ``down``; ``post`` is what it returns.
        mlp: the module whose input is the MLP's (None: a block has none); ``up``, ``down`` its
            projections, ``gate`` if gated, or ``gate_up`` fused (gate first).
        mlp_contribution: module whose output is added to the residual stream, if it is not
            ``mlp`` itself (blocks whose MLP module also adds the residual).
        router, experts: mixture of experts; ``expert_layout`` says how experts are stored. With
            ``down``, they stand beside an MLP: both are added.
        expert_names: what the experts' parameters are called: gate and up, down; the modules of
            one expert's projections, ``{e}`` for its number, where each expert is a module.
        router_output: which of the router's outputs are its logits.
        shared, shared_gate: the expert that every token uses (laid out as a gated MLP), and the
            projection whose sigmoid weights it (None: it is added as it is).
        parallel: attention and MLP read the same residual stream: there is no ``resid_mid``.
        mlp_reads_ln1: the MLP of a parallel block reads ln1's output.
        mlp_shifted: what the MLP's projections read is a mix of a token and the one before, learned
            for each projection (token shift, Peng et al. 2023).
        receptance: the projection whose sigmoid multiplies what ``down`` returns (the same).
        rotary: positions enter by rotating q and k.
        rotary_adjacent: dimensions 2i and 2i + 1 make a pair, and not i and i + n / 2.
        tiled: key/value heads are repeated a, b, a, b for the query heads, and not a, a, b, b.
        indexed: a query sees only the keys that an indexer chooses for it (sparse attention).
        attn_gate, attn_gate_by: the projection whose ``sigmoid`` or ``softplus`` multiplies what
            the heads mix, each element or each head, before ``o``.
        alibi: positions enter as a slope added to the scores of each head (Press et al. 2022).
        relative: positions enter as a learned score of each head and bucket of distances (Raffel et
            al. 2020); the path of the table in the first block of a stack, whose others use it too.
        q_gated: the projection of queries gives, for each head, its query and then a gate whose
            sigmoid multiplies the head's output (``W_QG``; ``attn.z`` is after it).
        unscaled: products of queries and keys are scores as they are.
        sinks: parameter of per-head attention sinks, relative to ``attn``.
        conv1d: weights are stored [in, out] (HuggingFace's ``Conv1D``).
        norm_offset: norms multiply by 1 + weight (Gemma).
        embed_scaled: the embedding multiplies by sqrt(d_model) (Gemma).
        embed_multiplier: what the embedding's output is multiplied by outside its module.
        residual_multiplier: what attention's and the MLP's outputs are multiplied by before they
            are added to the residual stream (Granite).
        attn_multiplier: what attention's output alone is multiplied by (Falcon H1).
        mlp_multiplier: what the MLP's last projection is multiplied by inside its module.
        per_layer, per_layer_out: the first and the last module of a branch after the MLP's that
            adds a token's embedding of this layer to the stream (Gemma 3n).
        stream_scale: the parameter or buffer that a block's sum is multiplied by at its end.
        unnamed: modules or parameters, relative to the block, that TransformerLens has no name
            for (a latent projection, say): they keep HuggingFace's.
        towers: modules beside the blocks that make embeddings of images or sounds, or of tokens for
            each layer: their parameters keep HuggingFace's names.
        reads_embedding: the block reads the embedding beside the stream, which thus is not all that
            later layers know.
        reads: the model's argument that takes pixels or a wave, where it reads no tokens.
        pooled: a sequence has one row of logits, which stands at every position.
        layers: where layers differ, one description for each; empty where all are alike.
    """

    architecture: str
    block: str
    embed: str
    ln_final: str | None
    attn: str | None = None
    o: str | None = None
    mixer: str | None = None
    mlp: str | None = None
    unembed: str | None = "lm_head"
    unembed_bias: str | None = None
    transform: str | None = None
    head: str | None = None
    pos_embed: str | None = None
    shortformer: bool = False
    pos_offset: int = 0
    embed_ln: str | None = None
    type_embed: str | None = None
    ln_pre: str | None = None
    own_positions: bool = False
    ln1: str | None = "input_layernorm"
    ln1_post: str | None = None
    ln2: str | None = "post_attention_layernorm"
    ln2_post: str | None = None
    ln_cross: str | None = None
    cross: str | None = None
    cross_q: str | None = None
    cross_k: str | None = None
    cross_v: str | None = None
    cross_o: str | None = None
    encoder: int = 0
    encoder_ln_final: str | None = None
    embed_weight: str | None = None
    unembed_weight: str | None = None
    windowed: bool = False
    ln_cross_post: str | None = None
    post_norm: bool = False
    causal: bool = True
    q: str | None = None
    k: str | None = None
    v: str | None = None
    qkv: str | None = None
    kv_latent: str | None = None
    qkv_layout: Literal["concat", "per_head", "grouped", "quarters"] = "concat"
    q_norm: str | None = None
    k_norm: str | None = None
    qk_norm: Literal["per_head", "per_head_transposed", "full"] | None = None
    qk_norm_rotated: bool = False
    q_multiplier: float = 1.0
    v_norm: str | None = None
    kv_from: int | None = None
    o_norm: str | None = None
    down_norm: str | None = None
    up: str | None = None
    down: str | None = None
    gate: str | None = None
    gate_up: str | None = None
    mlp_contribution: str | None = None
    router: str | None = None
    experts: str | None = None
    expert_layout: (
        Literal["gate_up_out_in", "gate_up_in_out", "interleaved_in_out", "modules"] | None
    ) = None
    expert_names: tuple[str, str] = ("gate_up_proj", "down_proj")
    router_output: int = 0
    shared: str | None = None
    shared_gate: str | None = None
    parallel: bool = False
    mlp_reads_ln1: bool = False
    mlp_shifted: bool = False
    receptance: str | None = None
    rotary: bool = True
    rotary_adjacent: bool = False
    alibi: bool = False
    relative: str | None = None
    q_gated: bool = False
    unscaled: bool = False
    sinks: str | None = None
    tiled: bool = False
    indexed: bool = False
    attn_gate: str | None = None
    attn_gate_by: Literal["sigmoid", "softplus"] = "sigmoid"
    conv1d: bool = False
    norm_offset: bool = False
    embed_scaled: bool = False
    embed_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attn_multiplier: float = 1.0
    mlp_multiplier: float = 1.0
    per_layer: str | None = None
    per_layer_out: str | None = None
    stream_scale: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    reads_embedding: bool = False
    reads: str | None = None
    pooled: bool = False
    layers: tuple[Family, ...] = ()

    @property
    def embeds(self) -> tuple[str, ...]:
        """The sites whose sum the first block's stream is, where no norm follows them."""
        return ("embed", "pos_embed") if self.pos_embed and not self.shortformer else ("embed",)

    @property
    def attn_reads(self) -> str:
        """The kind of site that attention reads."""
        return "ln1" if self.ln1 and not self.post_norm else "resid_pre"

    @property
    def mlp_reads(self) -> str:
        """The kind of site that the MLP reads."""
        if self.ln2 and not self.post_norm:
            return "ln2"
        if self.cross:
            return "resid_cross"
        return "ln1" if self.mlp_reads_ln1 else "resid_mid"

    @property
    def one_norm(self) -> bool:
        """Whether one module is the norm after the embedding and the final one."""
        return self.ln_final is not None and self.embed_ln == self.ln_final

    @property
    def sees_padding(self) -> bool:
        """Whether attention to its own stack hides no padding: a decoder's, which is given what it
        has written so far (HuggingFace's generation passes no mask of it)."""
        return self.cross is not None

    @property
    def order(self) -> Order:
        """In which order a forward pass computes the sites."""
        positions_first = bool(self.embed_ln and self.pos_embed and not self.one_norm)
        return Order(self.post_norm, self.qk_norm_rotated, self.encoder, positions_first)

    def of(self, layer: int) -> Family:
        """The description of one layer; this one where all are alike."""
        return self.layers[layer] if self.layers else self

    @property
    def every(self) -> tuple[Family, ...]:
        """The descriptions of all kinds of layers."""
        return tuple(self.layers) or (self,)

    def everywhere(self, kind: str) -> bool:
        """Whether every layer has a site of this kind."""
        return all(kind not in _absent(f) for f in self.every)

    @property
    def regular(self) -> bool:
        """Whether every layer has heads with weights of their own, and an MLP or experts, unless
        none has.

        What TransformerLens says of heads and circuits holds for such models only.
        """
        heads = all(f.attn and ((f.q and f.v) or f.qkv) for f in self.every)
        return heads and (self.attention_only or all(f.mlp for f in self.every))

    @property
    def attention_only(self) -> bool:
        """Whether blocks have attention and nothing else."""
        return all(f.attn and not f.mlp and not f.mixer for f in self.every)

    @property
    def summed(self) -> bool:
        """Whether the stream is the sum of what was added to it, each part as it was added."""
        return not any(f.post_norm or f.stream_scale for f in self.every)

    def at(self, path: str, layer: int) -> str:
        """Full module path of something inside block ``layer``."""
        base = self.block.format(l=layer)
        return f"{base}.{path}" if path else base

    def beside(self, kind: str, layer: int) -> str | None:
        """What later blocks are given that does not come through the stream at a site; None where
        the stream is all.

        Args:
            kind: ``resid_pre``, ``resid_mid``, ``resid_cross`` or ``resid_post``.
        """
        began = layer + (kind != "resid_pre")  # layers whose keys and values there are already
        for own in self.layers[layer + (kind == "resid_post") :]:
            if own.reads_embedding:
                return "later blocks read the embedding beside the stream"
            if own.per_layer:
                return "later blocks are given an embedding of each token beside the stream"
            if own.kv_from is not None and own.kv_from < began:
                return "later blocks read keys and values of a layer before"
        return None

    @property
    def moe(self) -> bool:
        return self.experts is not None

    @property
    def has_neurons(self) -> bool:
        """Whether the block has an MLP's hidden layer that every token uses."""
        return self.down is not None

    @property
    def gated(self) -> bool:
        return self.gate is not None or self.gate_up is not None

    def multiplier(self, kind: str) -> float:
        """What a site's module output is multiplied by before it is that site."""
        if kind == "attn_out":
            return self.attn_multiplier * self.residual_multiplier
        return self.residual_multiplier if kind == "mlp_out" else 1.0

    def absent(self, layer: int | None = None) -> dict[str, str]:
        """Site kinds that a layer does not have, each with the reason.

        Args:
            layer: which; None for the kinds that no layer has.
        """
        if layer is not None or not self.layers:
            return _absent(self if layer is None else self.of(layer))
        each = [_absent(f) for f in self.layers]
        return {kind: why for kind, why in each[0].items() if all(kind in a for a in each)}


def _absent(fam: Family) -> dict[str, str]:
    reasons: dict[str, str] = {}

    def missing(condition: bool, reason: str, *kinds: str) -> None:
        if condition:
            reasons.update(dict.fromkeys(kinds, reason))

    missing(fam.ln_final is None, "there is no norm after the last block", "ln_final")
    missing(fam.encoder_ln_final is None, "no encoder, or no norm after it", "ln_encoder")
    missing(fam.cross is None, "the block attends to no encoder", *_CROSS)
    missing(fam.pos_embed is None, "positions are not a learned table", "pos_embed")
    missing(fam.ln_pre is None, "no norm of the stream before the block", "ln_pre")
    missing(fam.ln1 is None, "attention reads the residual stream without a norm", "ln1")
    missing(fam.qk_norm is None, "queries are not normalised", "attn.q_normed")
    missing(fam.qk_norm is None, "keys are not normalised", "attn.k_normed")
    missing(fam.v_norm is None, "values are not normalised", "attn.v_normed")
    missing(not fam.rotary, "queries are not rotated", "attn.rot_q")
    missing(not fam.rotary, "keys are not rotated", "attn.rot_k")
    missing(fam.ln1_post is None, "the same tensor as attn_out: no norm after", "attn.out")
    joint = "queries, keys and values are not one projection each"
    missing(fam.q is None and fam.qkv is None, joint, "attn.q", "attn.k")
    missing(fam.q is None and fam.qkv is None and fam.kv_latent is None, joint, "attn.v")
    same = "values are made of what the projection of keys gives"
    missing(fam.k is not None and fam.v is None, same, "attn.v")
    another = f"keys and values are those of layer {fam.kv_from}"
    missing(fam.kv_from is not None, another, "attn.k", "attn.v", "attn.k_normed", "attn.v_normed")
    missing(fam.o is None, "no one projection reads what the heads mix", "attn.z")
    missing(fam.attn is None, "the block has no attention", *OF_ATTENTION)
    missing(fam.mixer is None, "the block has no mixer but attention", "mixer_out")
    missing(fam.ln2_post is None, "the same tensor as mlp_out: no norm after", "mlp.out")
    missing(fam.parallel, "attention and MLP read the same residual stream", "resid_mid")
    missing(fam.ln2 is None, "the MLP has no norm of its own before it", "ln2")
    missing(not fam.moe, "the MLP is dense", "mlp.router_logits")
    missing(not fam.gated, "the MLP is not gated", "mlp.pre_linear")
    inside = "activations live inside experts, each on its own tokens"
    missing(fam.moe and not fam.has_neurons, inside, *_NEURONS)
    missing(not fam.has_neurons and not fam.moe, "the MLP is one module", *_NEURONS)
    missing(fam.per_layer is None, "no embedding of a token for each layer", "per_layer_out")
    missing(fam.mlp is None, "the block has no MLP", *_MLP, "resid_mid", "ln2")
    return {**reasons, **fam.notes}


#: Kinds of site that only attention has.
OF_ATTENTION = (
    *("attn.q", "attn.k", "attn.v", "attn.q_normed", "attn.k_normed", "attn.v_normed"),
    *("attn.rot_q", "attn.rot_k", "attn.scores", "attn.pattern", "attn.z", "attn.out", "attn_out"),
)
_CROSS = (
    *("ln_cross", "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.scores"),
    *("cross_attn.pattern", "cross_attn.z", "cross_attn_out", "resid_cross"),
)
_NEURONS = ("mlp.pre", "mlp.pre_linear", "mlp.post")
_MLP = ("mlp.router_logits", *_NEURONS, "mlp.out", "mlp_out")


def like(base: Family, architecture: str, **changes: Any) -> Family:
    """A description that differs from another in some fields."""
    return dataclasses.replace(base, architecture=architecture, **changes)
