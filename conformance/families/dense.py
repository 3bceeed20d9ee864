"""More dense decoders (attention and an MLP in every block), as HuggingFace's modelling files lay
them out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.families.base import Family, like
from conformance.families.decoders import COHERE, LLAMA, plain

if TYPE_CHECKING:
    from collections.abc import Callable


_QWEN3 = plain("Qwen3ForCausalLM")
_OLMO2 = plain("Olmo2ForCausalLM")
_GEMMA = plain("GemmaForCausalLM")
_GPT2 = plain("GPT2LMHeadModel")
_GPTJ = plain("GPTJForCausalLM")
_OPT = plain("OPTForCausalLM")

_MODERN_BERT = like(
    LLAMA,
    "ModernBertDecoderForCausalLM",
    embed="model.embeddings.tok_embeddings",
    embed_ln="model.embeddings.norm",
    ln1="attn_norm",
    attn="attn",
    q="attn.q_proj",
    k="attn.k_proj",
    v="attn.v_proj",
    o="attn.Wo",
    ln2="mlp_norm",
    gate=None,
    up=None,
    gate_up="mlp.Wi",
    down="mlp.Wo",
    ln_final="model.final_norm",
    head="lm_head",
    unembed="decoder",
)

_UNGATED: dict[str, Any] = {"gate": None}
_FUSED_GATE: dict[str, Any] = {"gate": None, "up": None, "gate_up": "mlp.gate_up_proj"}


def _rotated(base: Family, architecture: str, rotates: list[bool]) -> Family:
    """Layers that differ in whether they rotate queries and keys."""
    layers = tuple(like(base, architecture, rotary=r) for r in rotates)
    return like(base, architecture, layers=layers)


def _cohere2(config: Any) -> Family:
    sliding = [t == "sliding_attention" for t in config.layer_types]
    rotates = [s and config.sliding_window is not None for s in sliding]
    return _rotated(COHERE, "Cohere2ForCausalLM", rotates)


def _exaone4(config: Any) -> Family:
    base = like(_OLMO2, "Exaone4ForCausalLM", qk_norm="per_head_transposed")
    sliding = [t == "sliding_attention" for t in config.layer_types]
    rotates = [s or config.sliding_window is None for s in sliding]
    return _rotated(base, "Exaone4ForCausalLM", rotates)


def _modern_bert(config: Any) -> Family:
    first = dataclasses.replace(_MODERN_BERT, ln1=None)  # it reads the embedding's own norm
    layers = (first, *(_MODERN_BERT,) * (config.num_hidden_layers - 1))
    return dataclasses.replace(_MODERN_BERT, layers=layers)


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    f.architecture: f
    for f in (
        like(LLAMA, "ArceeForCausalLM", **_UNGATED),
        like(LLAMA, "NemotronForCausalLM", **_UNGATED, norm_offset=True),
        like(LLAMA, "Jais2ForCausalLM", **_UNGATED),
        like(LLAMA, "Starcoder2ForCausalLM", gate=None, up="mlp.c_fc", down="mlp.c_proj"),
        like(LLAMA, "SeedOssForCausalLM"),
        like(LLAMA, "Ernie4_5ForCausalLM", rotary_adjacent=True),
        like(LLAMA, "Ministral3ForCausalLM"),
        like(LLAMA, "GlmForCausalLM", **_FUSED_GATE, rotary_adjacent=True),
        like(
            LLAMA,
            "Glm4ForCausalLM",
            **_FUSED_GATE,
            rotary_adjacent=True,
            ln1_post="post_self_attn_layernorm",
            ln2_post="post_mlp_layernorm",
        ),
        like(_OLMO2, "Olmo3ForCausalLM"),
        like(_GEMMA, "VaultGemmaForCausalLM", ln2="pre_feedforward_layernorm"),
        like(
            _QWEN3,
            "ApertusForCausalLM",
            **_UNGATED,
            qk_norm="per_head_transposed",
            ln1="attention_layernorm",
            ln2="feedforward_layernorm",
            unnamed=("mlp.act_fn",),
        ),
        like(_GPT2, "GPTBigCodeForCausalLM", conv1d=False),
        like(
            _GPTJ,
            "CodeGenForCausalLM",
            **dict.fromkeys("qkv"),
            qkv="attn.qkv_proj",
            qkv_layout="quarters",
        ),
        like(
            _QWEN3,
            "HunYuanDenseV1ForCausalLM",
            q_norm="self_attn.query_layernorm",
            k_norm="self_attn.key_layernorm",
            qk_norm="per_head_transposed",
            qk_norm_rotated=True,
        ),
        like(
            _QWEN3,
            "NanoChatForCausalLM",
            embed_ln="model.norm",
            qk_norm="per_head_transposed",
            qk_norm_rotated=True,
            gate=None,
            up="mlp.fc1",
            down="mlp.fc2",
        ),
        like(
            LLAMA,
            "BitNetForCausalLM",
            o_norm="self_attn.attn_sub_norm",
            down_norm="mlp.ffn_sub_norm",
        ),
        like(
            _OPT,
            "XGLMForCausalLM",
            block="model.layers.{l}",
            embed="model.embed_tokens",
            embed_scaled=True,
            pos_embed="model.embed_positions",
            ln_final="model.layer_norm",
        ),
    )
}
FAMILIES["Cohere2ForCausalLM"] = _cohere2
FAMILIES["Exaone4ForCausalLM"] = _exaone4
FAMILIES["ModernBertDecoderForCausalLM"] = _modern_bert
