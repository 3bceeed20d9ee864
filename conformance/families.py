"""Where each site and each weight of a HuggingFace architecture lives.

This is data, written from the HuggingFace modelling files and independent of TransformerLens's
own mapping (its mapping is what is under test). ``family(config)`` gives the description of one
checkpoint; ``{l}`` stands for the layer. Nothing here imports torch at module level.

Fields that are None mean that the architecture has no such module; :meth:`Family.absent` turns
them into the reason that a report gives.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from conformance.errors import FamilyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, as HuggingFace lays it out.

    Attributes:
        architecture: the HuggingFace class name.
        block: path of one block.
        embed, pos_embed, embed_ln: token embedding, learned positions, norm after embedding.
        pos_offset: rows of the position table before position 0 (OPT keeps 2).
        ln1, ln1_post, ln2, ln2_post: norms before and after attention and MLP, relative to the
            block.
        attn: the attention module, relative to the block; ``o`` its output projection.
        q, k, v: separate projections; or ``qkv`` fused, laid out as ``qkv_layout``:
            ``concat`` (all q, all k, all v), ``per_head`` (q, k, v of head 0, of head 1, ...),
            ``grouped`` (queries of a group, its key, its value; next group).
        qk_norm: norms of q and k over each head (``per_head``: applied to [batch, pos, head,
            d_head]; ``per_head_transposed``: to [batch, head, pos, d_head]) or over all heads
            at once (``full``).
        mlp: the module whose input is the MLP's; ``up``, ``down`` its projections, ``gate`` if
            gated, or ``gate_up`` fused (gate first).
        mlp_contribution: module whose output is added to the residual stream, if it is not
            ``mlp`` itself (blocks whose MLP module also adds the residual).
        router, experts: mixture of experts; ``expert_layout`` says how experts are stored.
        shared, shared_gate: the expert that every token uses (laid out as a gated MLP), and the
            projection whose sigmoid weights it.
        parallel: attention and MLP read the same residual stream: there is no ``resid_mid``.
        mlp_reads_ln1: the MLP of a parallel block reads ln1's output.
        rotary: positions enter by rotating q and k.
        sinks: parameter of per-head attention sinks, relative to ``attn``.
        conv1d: weights are stored [in, out] (HuggingFace's ``Conv1D``).
        norm_offset: norms multiply by 1 + weight (Gemma).
        embed_scaled: the embedding multiplies by sqrt(d_model) (Gemma).
        embed_multiplier: what the embedding's output is multiplied by outside its module.
        residual_multiplier: what attention's and the MLP's outputs are multiplied by before they
            are added to the residual stream (Granite).
    """

    architecture: str
    block: str
    embed: str
    attn: str
    o: str
    mlp: str
    ln_final: str
    unembed: str = "lm_head"
    pos_embed: str | None = None
    pos_offset: int = 0
    embed_ln: str | None = None
    ln1: str | None = "input_layernorm"
    ln1_post: str | None = None
    ln2: str | None = "post_attention_layernorm"
    ln2_post: str | None = None
    q: str | None = None
    k: str | None = None
    v: str | None = None
    qkv: str | None = None
    qkv_layout: Literal["concat", "per_head", "grouped"] = "concat"
    q_norm: str | None = None
    k_norm: str | None = None
    qk_norm: Literal["per_head", "per_head_transposed", "full"] | None = None
    up: str | None = None
    down: str | None = None
    gate: str | None = None
    gate_up: str | None = None
    mlp_contribution: str | None = None
    router: str | None = None
    experts: str | None = None
    expert_layout: Literal["gate_up_out_in", "interleaved_in_out"] | None = None
    shared: str | None = None
    shared_gate: str | None = None
    parallel: bool = False
    mlp_reads_ln1: bool = False
    rotary: bool = True
    sinks: str | None = None
    conv1d: bool = False
    norm_offset: bool = False
    embed_scaled: bool = False
    embed_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    notes: Mapping[str, str] = field(default_factory=dict)

    def at(self, path: str, layer: int) -> str:
        """Full module path of something inside block ``layer``."""
        base = self.block.format(l=layer)
        return f"{base}.{path}" if path else base

    @property
    def moe(self) -> bool:
        return self.experts is not None

    @property
    def gated(self) -> bool:
        return self.gate is not None or self.gate_up is not None

    def absent(self) -> dict[str, str]:
        """Site kinds this architecture does not have, each with the reason."""
        reasons: dict[str, str] = {}

        def missing(condition: bool, kind: str, reason: str) -> None:
            if condition:
                reasons[kind] = reason

        missing(self.pos_embed is None, "pos_embed", "positions are not a learned table")
        missing(self.ln1 is None, "ln1", "attention reads the residual stream without a norm")
        no_qk_norm = self.qk_norm is None
        missing(no_qk_norm, "attn.q_normed", "queries are not normalised")
        missing(no_qk_norm, "attn.k_normed", "keys are not normalised")
        missing(not self.rotary, "attn.rot_q", "queries are not rotated")
        missing(not self.rotary, "attn.rot_k", "keys are not rotated")
        missing(self.ln1_post is None, "attn.out", "the same tensor as attn_out: no norm after")
        missing(self.ln2_post is None, "mlp.out", "the same tensor as mlp_out: no norm after")
        missing(self.parallel, "resid_mid", "attention and MLP read the same residual stream")
        missing(self.ln2 is None, "ln2", "the MLP has no norm of its own before it")
        missing(not self.moe, "mlp.router_logits", "the MLP is dense")
        moe = "activations live inside experts, each on its own tokens"
        missing(self.moe, "mlp.pre", moe)
        missing(self.moe, "mlp.post", moe)
        missing(
            self.moe or not self.gated,
            "mlp.pre_linear",
            moe if self.moe else "the MLP is not gated",
        )
        return {**reasons, **self.notes}


_LLAMA = Family(
    architecture="LlamaForCausalLM",
    block="model.layers.{l}",
    embed="model.embed_tokens",
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    mlp="mlp",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    ln_final="model.norm",
)


def _like(base: Family, architecture: str, **changes: Any) -> Family:
    return dataclasses.replace(base, architecture=architecture, **changes)


_DENSE_TO_NONE: dict[str, Any] = {"gate": None, "up": None, "down": None}
_MOE: dict[str, Any] = {
    **_DENSE_TO_NONE,
    "router": "mlp.gate",
    "experts": "mlp.experts",
    "expert_layout": "gate_up_out_in",
}
_QK_NORM: dict[str, Any] = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_FUSED: dict[str, Any] = {"q": None, "k": None, "v": None}

_QWEN3 = _like(_LLAMA, "Qwen3ForCausalLM", **_QK_NORM, qk_norm="per_head")
_GEMMA = _like(_LLAMA, "GemmaForCausalLM", norm_offset=True, embed_scaled=True)
_GEMMA2 = _like(
    _GEMMA,
    "Gemma2ForCausalLM",
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
)
_GPT2 = Family(
    architecture="GPT2LMHeadModel",
    block="transformer.h.{l}",
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    ln1="ln_1",
    ln2="ln_2",
    attn="attn",
    qkv="attn.c_attn",
    o="attn.c_proj",
    mlp="mlp",
    up="mlp.c_fc",
    down="mlp.c_proj",
    ln_final="transformer.ln_f",
    rotary=False,
    conv1d=True,
)
_BLOOM = Family(
    architecture="BloomForCausalLM",
    block="transformer.h.{l}",
    embed="transformer.word_embeddings",
    embed_ln="transformer.word_embeddings_layernorm",
    attn="self_attention",
    qkv="self_attention.query_key_value",
    qkv_layout="per_head",
    o="self_attention.dense",
    mlp="mlp",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    mlp_contribution="mlp.dense_4h_to_h",
    ln_final="transformer.ln_f",
    rotary=False,
)


def _falcon(config: Any) -> Family:
    new, parallel = config.new_decoder_architecture, config.parallel_attn
    two_norms = new and getattr(config, "num_ln_in_parallel_attn", None) in (None, 2)
    if new or config.multi_query:
        layout: Literal["grouped", "per_head"] = "grouped"
    else:
        layout = "per_head"
    return _like(
        _BLOOM,
        "FalconForCausalLM",
        embed_ln=None,
        mlp_contribution=None,
        qkv_layout=layout,
        rotary=not config.alibi,
        parallel=parallel or new,
        mlp_reads_ln1=parallel and not two_norms,
        ln1="ln_attn" if two_norms else "input_layernorm",
        ln2="ln_mlp" if two_norms else (None if parallel else "post_attention_layernorm"),
    )


def _granite(config: Any) -> Family:
    return _like(
        _LLAMA,
        "GraniteForCausalLM",
        embed_multiplier=float(config.embedding_multiplier),
        residual_multiplier=float(config.residual_multiplier),
    )


_FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    f.architecture: f
    for f in (
        _LLAMA,
        _GPT2,
        _BLOOM,
        _QWEN3,
        _GEMMA,
        _GEMMA2,
        _like(_LLAMA, "MistralForCausalLM"),
        _like(_LLAMA, "Qwen2ForCausalLM"),
        _like(_LLAMA, "MixtralForCausalLM", **_MOE),
        _like(
            _LLAMA,
            "Qwen2MoeForCausalLM",
            **_MOE,
            shared="mlp.shared_expert",
            shared_gate="mlp.shared_expert_gate",
        ),
        _like(_QWEN3, "Qwen3MoeForCausalLM", **_MOE),
        _like(_GEMMA2, "Gemma3ForCausalLM", **_QK_NORM, qk_norm="per_head_transposed"),
        _like(_LLAMA, "OlmoForCausalLM"),
        _like(
            _LLAMA,
            "Olmo2ForCausalLM",
            **_QK_NORM,
            qk_norm="full",
            ln1=None,
            ln1_post="post_attention_layernorm",
            ln2=None,
            ln2_post="post_feedforward_layernorm",
        ),
        _like(
            _LLAMA,
            "GptOssForCausalLM",
            **{**_MOE, "router": "mlp.router", "expert_layout": "interleaved_in_out"},
            sinks="sinks",
        ),
        _like(_LLAMA, "StableLmForCausalLM"),
        _like(_LLAMA, "CohereForCausalLM", parallel=True, mlp_reads_ln1=True, ln2=None),
        _like(
            _LLAMA,
            "Phi3ForCausalLM",
            **_FUSED,
            qkv="self_attn.qkv_proj",
            gate=None,
            up=None,
            gate_up="mlp.gate_up_proj",
        ),
        _like(
            _LLAMA,
            "PhiForCausalLM",
            o="self_attn.dense",
            gate=None,
            up="mlp.fc1",
            down="mlp.fc2",
            ln_final="model.final_layernorm",
            parallel=True,
            mlp_reads_ln1=True,
            ln2=None,
        ),
        _like(
            _BLOOM,
            "GPTNeoXForCausalLM",
            block="gpt_neox.layers.{l}",
            embed="gpt_neox.embed_in",
            embed_ln=None,
            attn="attention",
            qkv="attention.query_key_value",
            o="attention.dense",
            mlp_contribution=None,
            ln_final="gpt_neox.final_layer_norm",
            parallel=True,
            rotary=True,
        ),
        _like(
            _GPT2,
            "GPTNeoForCausalLM",
            qkv=None,
            q="attn.attention.q_proj",
            k="attn.attention.k_proj",
            v="attn.attention.v_proj",
            o="attn.attention.out_proj",
            conv1d=False,
        ),
        _like(
            _GPT2,
            "GPTJForCausalLM",
            pos_embed=None,
            qkv=None,
            q="attn.q_proj",
            k="attn.k_proj",
            v="attn.v_proj",
            o="attn.out_proj",
            up="mlp.fc_in",
            down="mlp.fc_out",
            ln2=None,
            parallel=True,
            mlp_reads_ln1=True,
            rotary=True,
            conv1d=False,
        ),
        _like(
            _LLAMA,
            "OPTForCausalLM",
            block="model.decoder.layers.{l}",
            embed="model.decoder.embed_tokens",
            pos_embed="model.decoder.embed_positions",
            pos_offset=2,
            ln1="self_attn_layer_norm",
            ln2="final_layer_norm",
            o="self_attn.out_proj",
            mlp="fc1",
            gate=None,
            up="fc1",
            down="fc2",
            mlp_contribution="fc2",
            ln_final="model.decoder.final_layer_norm",
            rotary=False,
        ),
        _like(
            _GPT2,
            "MptForCausalLM",
            block="transformer.blocks.{l}",
            pos_embed=None,
            ln1="norm_1",
            ln2="norm_2",
            qkv="attn.Wqkv",
            o="attn.out_proj",
            mlp="ffn",
            up="ffn.up_proj",
            down="ffn.down_proj",
            mlp_contribution="ffn.down_proj",
            ln_final="transformer.norm_f",
            conv1d=False,
        ),
    )
}
_FAMILIES["FalconForCausalLM"] = _falcon
_FAMILIES["GraniteForCausalLM"] = _granite


def architectures() -> tuple[str, ...]:
    """Every architecture this file describes, sorted."""
    return tuple(sorted(_FAMILIES))


def family(architecture: str, config: Any) -> Family:
    """The description of one checkpoint.

    Args:
        architecture: the HuggingFace class name, as in ``models.toml``.
        config: the checkpoint's HuggingFace config.

    Raises:
        FamilyError: nothing is known about this architecture.
    """
    entry = _FAMILIES.get(architecture)
    if entry is None:
        raise FamilyError(
            f"architecture {architecture!r} is not described in conformance/families.py",
            f"add an entry there and a twin; described: {', '.join(architectures())}",
        )
    return entry(config) if callable(entry) else entry


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes of one checkpoint, read from its HuggingFace config."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_experts: int
    windows: tuple[int | None, ...]

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.n_heads // self.n_kv_heads


def _first(config: Any, *names: str, default: Any = None) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return default


def dims(config: Any) -> Dims:
    """Sizes from a HuggingFace config, whatever its architecture calls them."""
    n_layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    n_heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    d_model = _first(config, "hidden_size", "n_embd", "d_model")
    n_kv = _first(config, "num_key_value_heads", "num_kv_heads", default=n_heads)
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        n_kv = 1 if config.multi_query else n_heads
    layer_types = _first(config, "layer_types")
    window = _first(config, "sliding_window", "window_size")
    if config.model_type == "gpt_neo":
        windows = tuple(window if t == "local" else None for t in config.attention_layers)
    elif layer_types is not None:
        windows = tuple(window if t == "sliding_attention" else None for t in layer_types)
    else:
        windows = (window if isinstance(window, int) else None,) * n_layers
    return Dims(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv,
        d_model=d_model,
        d_head=_first(config, "head_dim", default=d_model // n_heads),
        d_vocab=config.vocab_size,
        n_ctx=_first(config, "max_position_embeddings", "n_positions", "max_seq_len", default=2048),
        n_experts=_first(config, "num_local_experts", "num_experts", default=0),
        windows=windows,
    )
