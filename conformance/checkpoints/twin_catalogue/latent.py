"""Twins with latent attention; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping

_GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
_DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 32,
}

TWINS: Mapping[str, Twin] = {
    # With a padding token the row of it is made zero whenever the model is loaded (transformers 5).
    "youtu": Twin("YoutuForCausalLM", "youtu", {"pad_token_id": None}),
    # As DeepSeek-V2: the best of each group of experts counts, and shares are not renormalised.
    "deepseek-v2": Twin(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        {
            **_GROUPS,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 16.0,
            "first_k_dense_replace": 1,
            "num_experts_per_tok": 3,
            "rope_parameters": {**_DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    # DeepSeek-V2-Lite: queries without a latent of their own.
    "deepseek-v2-lite": Twin(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        {"q_lora_rank": None, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    ),
    # As DeepSeek-V3: groups of experts, a correction bias, yarn with its factor of the scores.
    "deepseek-v3": Twin(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        {
            **_GROUPS,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
            "rope_parameters": _DEEPSEEK_YARN,
            "num_nextn_predict_layers": 0,
        },
    ),
    # As GLM-5: an indexer chooses the keys of each query; one layer uses the choice of another.
    # With few heads of the indexer many keys would score exactly zero, and the choice be a tie.
    "glm-moe-dsa": Twin(
        "GlmMoeDsaForCausalLM",
        "glm_moe_dsa",
        {
            "num_hidden_layers": 4,
            "n_routed_experts": 6,
            "first_k_dense_replace": 1,
            "index_topk": 9,
            "index_n_heads": 20,
            "index_head_dim": 14,
            "indexer_types": ["full", "full", "shared", "full"],
        },
    ),
    "glm4-moe-lite": Twin("Glm4MoeLiteForCausalLM", "glm4_moe_lite", {"n_routed_experts": 6}),
}
