"""Twins of mixtures of experts; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import WINDOW
from conformance.checkpoints.twin import Twin
from conformance.checkpoints.twin_catalogue.settings import GQA, HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
_SIX_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 6}

TWINS: Mapping[str, Twin] = {
    "mixtral": Twin("MixtralForCausalLM", "mixtral", {**GQA, **_EXPERTS}),
    "qwen2-moe": Twin(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        {
            **GQA,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 28,
            "shared_expert_intermediate_size": 36,
            "norm_topk_prob": False,
        },
    ),
    "qwen3-moe": Twin(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        {
            **HEAD,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 28,
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
        },
    ),
    "gpt-oss": Twin(
        "GptOssForCausalLM",
        "gpt_oss",
        {
            **HEAD,
            **_EXPERTS,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 3,
            },
        },
        # Pre-activations of the experts must pass the limit of 7 that clamps them.
        {"gate_up_proj": 2.5, "sinks": 3.0},
    ),
    "olmoe": Twin("OlmoeForCausalLM", "olmoe", {**_SIX_HEADS, "intermediate_size": 28}),
    "flex-olmo": Twin("FlexOlmoForCausalLM", "flex_olmo", {**_SIX_HEADS, "intermediate_size": 28}),
    "granite-moe": Twin(
        "GraniteMoeForCausalLM",
        "granitemoe",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 28,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.21,
            "logits_scaling": 6.0,
        },
    ),
    "ernie-4.5-moe": Twin(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        {},
        # Softmax scores of five experts are near 0.2: a larger bias would choose always the same.
        {"e_score_correction_bias": 0.15},
    ),
    # As GLM-4.5: norms of queries and keys, half of each head rotated, biases, scaled experts.
    "glm4-moe": Twin(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        {
            "num_hidden_layers": 4,
            "head_dim": 12,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 2.5,
            "n_routed_experts": 6,
            "num_nextn_predict_layers": 0,
        },
    ),
    "minimax-m2": Twin(
        "MiniMaxM2ForCausalLM", "minimax_m2", {"rotary_dim": 6, "intermediate_size": 28}
    ),
    # As Trinity: muP's scale of the embedding, scaled experts, two dense layers.
    "afmoe": Twin(
        "AfmoeForCausalLM",
        "afmoe",
        {
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "num_dense_layers": 2,
            "num_shared_experts": 1,
            "global_attn_every_n_layers": 2,
            "route_scale": 2.826,
            "mup_enabled": True,
        },
    ),
    "laguna": Twin(
        "LagunaForCausalLM",
        "laguna",
        {
            "num_hidden_layers": 4,
            "head_dim": 12,
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
            "moe_routed_scaling_factor": 2.5,
        },
    ),
    # Attention's queries and outputs are mixtures of experts, too.
    "jetmoe": Twin(
        "JetMoeForCausalLM",
        "jetmoe",
        {"num_key_value_heads": 3, "kv_channels": 10, "intermediate_size": 28},
    ),
    # As Llama 4 Maverick (experts in every other layer) with Scout's norm of queries and keys.
    "llama4": Twin(
        "Llama4ForCausalLM",
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 28,
            "intermediate_size_mlp": 80,
            "num_experts_per_tok": 1,
            "moe_layers": [1, 3],
            "no_rope_layers": [1, 0, 0, 1],
            "attention_chunk_size": 20,
            "floor_scale": 5,
        },
    ),
}
