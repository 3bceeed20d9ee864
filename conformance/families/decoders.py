"""Decoders of attention and an MLP or experts, as HuggingFace's modelling files lay them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from conformance.families.base import Family, like

if TYPE_CHECKING:
    from collections.abc import Callable

LLAMA = Family(
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


_DENSE_TO_NONE: dict[str, Any] = {"gate": None, "up": None, "down": None}
MOE: dict[str, Any] = {
    **_DENSE_TO_NONE,
    "router": "mlp.gate",
    "experts": "mlp.experts",
    "expert_layout": "gate_up_out_in",
}
_ONE_NORM: dict[str, Any] = {"parallel": True, "mlp_reads_ln1": True, "ln2": None}
COHERE = like(LLAMA, "CohereForCausalLM", **_ONE_NORM, rotary_adjacent=True)
QK_NORM: dict[str, Any] = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_FUSED: dict[str, Any] = {"q": None, "k": None, "v": None}

_QWEN3 = like(LLAMA, "Qwen3ForCausalLM", **QK_NORM, qk_norm="per_head")
_GEMMA = like(LLAMA, "GemmaForCausalLM", norm_offset=True, embed_scaled=True)
_GEMMA2 = like(
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
    alibi=True,
)


def _falcon(config: Any) -> Family:
    new, parallel = config.new_decoder_architecture, config.parallel_attn
    two_norms = new and getattr(config, "num_ln_in_parallel_attn", None) in (None, 2)
    if new or config.multi_query:
        layout: Literal["grouped", "per_head"] = "grouped"
    else:
        layout = "per_head"
    return like(
        _BLOOM,
        "FalconForCausalLM",
        embed_ln=None,
        mlp_contribution=None,
        qkv_layout=layout,
        rotary=not config.alibi,
        alibi=config.alibi,
        parallel=parallel or new,
        mlp_reads_ln1=parallel and not two_norms,
        ln1="ln_attn" if two_norms else "input_layernorm",
        ln2="ln_mlp" if two_norms else (None if parallel else "post_attention_layernorm"),
    )


def _granite(config: Any) -> Family:
    return like(
        LLAMA,
        "GraniteForCausalLM",
        embed_multiplier=float(config.embedding_multiplier),
        residual_multiplier=float(config.residual_multiplier),
    )


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    f.architecture: f
    for f in (
        LLAMA,
        _GPT2,
        _BLOOM,
        like(_BLOOM, "BloomModel"),
        _QWEN3,
        _GEMMA,
        _GEMMA2,
        like(LLAMA, "MistralForCausalLM"),
        like(LLAMA, "Qwen2ForCausalLM"),
        like(LLAMA, "MixtralForCausalLM", **MOE),
        like(
            LLAMA,
            "Qwen2MoeForCausalLM",
            **MOE,
            shared="mlp.shared_expert",
            shared_gate="mlp.shared_expert_gate",
        ),
        like(_QWEN3, "Qwen3MoeForCausalLM", **MOE),
        like(_GEMMA2, "Gemma3ForCausalLM", **QK_NORM, qk_norm="per_head_transposed"),
        like(LLAMA, "OlmoForCausalLM"),
        like(
            LLAMA,
            "Olmo2ForCausalLM",
            **QK_NORM,
            qk_norm="full",
            ln1=None,
            ln1_post="post_attention_layernorm",
            ln2=None,
            ln2_post="post_feedforward_layernorm",
        ),
        like(
            LLAMA,
            "GptOssForCausalLM",
            **{**MOE, "router": "mlp.router", "expert_layout": "interleaved_in_out"},
            sinks="sinks",
        ),
        like(
            LLAMA,
            "Phi3ForCausalLM",
            **_FUSED,
            qkv="self_attn.qkv_proj",
            gate=None,
            up=None,
            gate_up="mlp.gate_up_proj",
        ),
        like(
            LLAMA,
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
        like(
            _GPT2,
            "GPTNeoForCausalLM",
            qkv=None,
            q="attn.attention.q_proj",
            k="attn.attention.k_proj",
            v="attn.attention.v_proj",
            o="attn.attention.out_proj",
            conv1d=False,
        ),
        like(
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
            rotary_adjacent=True,
            conv1d=False,
        ),
        like(
            LLAMA,
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
        like(
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
            alibi=True,
        ),
    )
}


def _smollm3(config: Any) -> Family:
    layers = tuple(like(LLAMA, "SmolLM3ForCausalLM", rotary=bool(r)) for r in config.no_rope_layers)
    return like(LLAMA, "SmolLM3ForCausalLM", layers=layers)


def _gpt_neox(config: Any) -> Family:
    return like(
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
        parallel=bool(config.use_parallel_residual),
        rotary=True,
        alibi=False,
    )


def _cohere(config: Any) -> Family:
    norms = {**QK_NORM, "qk_norm": "per_head"} if config.use_qk_norm else {}
    return like(COHERE, "CohereForCausalLM", **norms)


def _stablelm(config: Any) -> Family:
    return like(LLAMA, "StableLmForCausalLM", **(_ONE_NORM if config.use_parallel_residual else {}))


FAMILIES["SmolLM3ForCausalLM"] = _smollm3
FAMILIES["GPTNeoXForCausalLM"] = _gpt_neox
FAMILIES["CohereForCausalLM"] = _cohere
FAMILIES["StableLmForCausalLM"] = _stablelm
FAMILIES["FalconForCausalLM"] = _falcon
FAMILIES["GraniteForCausalLM"] = _granite


def plain(architecture: str) -> Family:
    """The description of an architecture that needs no config."""
    found = FAMILIES[architecture]
    assert isinstance(found, Family)
    return found
