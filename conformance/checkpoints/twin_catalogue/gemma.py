"""Twins of the Gemmas; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import WINDOW
from conformance.checkpoints.twin import Twin
from conformance.checkpoints.twin_catalogue.settings import HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping


TWINS: Mapping[str, Twin] = {
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
