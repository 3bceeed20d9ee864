"""Twins of the Gemmas; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import WINDOW
from conformance.checkpoints.twin import Twin
from conformance.checkpoints.twin_catalogue.settings import HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping


_KINDS_OF_GEMMA4 = ["sliding_attention", "sliding_attention", "full_attention"]
#: As Gemma 4 E2B and E4B: the last layers read keys and values of others and have twice as wide an
#: MLP; every layer has an embedding of each token.
GEMMA4 = {
    **HEAD,
    "num_hidden_layers": 5,
    "layer_types": [*_KINDS_OF_GEMMA4, "sliding_attention", "full_attention"],
    "sliding_window": WINDOW,
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "vocab_size_per_layer_input": 113,
    "hidden_size_per_layer_input": 14,
    "final_logit_softcapping": 30.0,
}
#: As Gemma 4 12B and 31B: keys of global layers are their values, before either's norm.
GEMMA4_SAME = {
    **HEAD,
    "num_key_value_heads": 3,
    "num_hidden_layers": 4,
    "layer_types": [*_KINDS_OF_GEMMA4, "full_attention"],
    "sliding_window": WINDOW,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "final_logit_softcapping": 30.0,
}

TWINS: Mapping[str, Twin] = {
    "gemma4": Twin("Gemma4ForCausalLM", "gemma4_text", GEMMA4),
    "gemma4-31b": Twin(
        "Gemma4ForCausalLM", "gemma4_text", {**GEMMA4_SAME, "hidden_size_per_layer_input": 0}
    ),
    # Gemma 4 26B-A4B: experts beside the MLP.
    "gemma4-26b-a4b": Twin(
        "Gemma4ForCausalLM",
        "gemma4_text",
        {
            **GEMMA4_SAME,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 2,
            "moe_intermediate_size": 28,
        },
    ),
    "gemma": Twin("GemmaForCausalLM", "gemma", dict(HEAD)),
    # Gemma 2B has one key and value for all heads, 7B one for each.
    "gemma-2b": Twin("GemmaForCausalLM", "gemma", {**HEAD, "num_key_value_heads": 1}),
    "gemma-7b": Twin("GemmaForCausalLM", "gemma", {**HEAD, "num_key_value_heads": 6}),
    "gemma2": Twin(
        "Gemma2ForCausalLM",
        "gemma2",
        {
            **HEAD,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 14,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **HEAD,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 14,
            "layer_types": [
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
        },
    ),
    # HookedTransformer hard-codes the constants of the official Gemma 2 and 3 checkpoints; only a
    # twin that carries them can show its port right or wrong.
    "gemma2-official": Twin(
        "Gemma2ForCausalLM",
        "gemma2",
        {
            **HEAD,
            "num_hidden_layers": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    # Gemma 2 27B scales attention by d_model / heads instead of the size of a head.
    "gemma2-27b": Twin(
        "Gemma2ForCausalLM",
        "gemma2",
        {
            **HEAD,
            "num_hidden_layers": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 144,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3-official": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **HEAD,
            "num_hidden_layers": 7,
            "max_position_embeddings": 640,
            "sliding_window": 512,
            "query_pre_attn_scalar": 10,
        },
    ),
    # Gemma 3 270M and 1B: one key and value for all heads.
    "gemma3-1b": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **HEAD,
            "num_key_value_heads": 1,
            "num_hidden_layers": 7,
            "max_position_embeddings": 640,
            "sliding_window": 512,
            "query_pre_attn_scalar": 10,
        },
        {"q_norm.weight": 2.0},
    ),
    # MedGemma 27B: queries scaled by d_model / heads, positions of full attention by 1/8.
    "gemma3-27b": Twin(
        "Gemma3ForCausalLM",
        "gemma3_text",
        {
            **HEAD,
            "num_key_value_heads": 3,
            "num_hidden_layers": 7,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        },
    ),
    "vaultgemma": Twin(
        "VaultGemmaForCausalLM",
        "vaultgemma",
        {
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 14,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 30.0,
        },
    ),
}
