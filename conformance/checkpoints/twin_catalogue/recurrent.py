"""Twins with state-space models, linear attention or convolutions; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 12, "mamba_n_groups": 2}
_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 9,
}
_LINEAR_LAYERS = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
#: Half of a head of ten is odd: a head of sixteen, a quarter of which is rotated.
_PARTIAL_ROPE = {
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
}

TWINS: Mapping[str, Twin] = {
    "mamba": Twin("MambaForCausalLM", "mamba", {"intermediate_size": 96}, {"mixer.D": 12.0}),
    # Weights and stream are halved once inside the twin and once after its last layer.
    "rwkv": Twin(
        "RwkvForCausalLM",
        "rwkv",
        {"num_hidden_layers": 4, "intermediate_size": 80, "rescale_every": 2},
    ),
    "jamba": Twin(
        "JambaForCausalLM",
        "jamba",
        {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "mamba2": Twin("Mamba2ForCausalLM", "mamba2", {"num_heads": 8, "head_dim": 12, "n_groups": 2}),
    "falcon-mamba": Twin("FalconMambaForCausalLM", "falcon_mamba", {"intermediate_size": 96}),
    "bamba": Twin(
        "BambaForCausalLM",
        "bamba",
        {**_MAMBA_HEADS, "num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    ),
    "lfm2": Twin(
        "Lfm2ForCausalLM",
        "lfm2",
        {
            "num_hidden_layers": 4,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
    # As LFM2-8B-A1B: two dense layers before those of experts, a correction bias.
    "lfm2-moe": Twin(
        "Lfm2MoeForCausalLM",
        "lfm2_moe",
        {
            "num_hidden_layers": 5,
            "num_dense_layers": 2,
            "layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"],
        },
    ),
    # sqrt(64) is a number in every dtype: the model keeps it in bfloat16.
    "recurrent-gemma": Twin(
        "RecurrentGemmaForCausalLM",
        "recurrent_gemma",
        {
            "num_hidden_layers": 5,
            "hidden_size": 64,
            "lru_width": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
    ),
    # Multipliers as in Falcon-H1-0.5B.
    "falcon-h1": Twin(
        "FalconH1ForCausalLM",
        "falcon_h1",
        {
            **_MAMBA_HEADS,
            "mamba_d_ssm": 96,
            "embedding_multiplier": 5.656854249492381,
            "lm_head_multiplier": 0.0390625,
            "mlp_multipliers": [0.8838834764831845, 0.5859375],
            "ssm_multipliers": [
                0.3535533905932738,
                0.25,
                0.3535533905932738,
                0.5,
                0.3535533905932738,
            ],
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.23570226039551587,
            "attention_out_multiplier": 0.9375,
            "key_multiplier": 0.39062499999999994,
        },
    ),
    # Two blocks that layers share in turn, with adapters and rotary positions. No time step is as
    # small as the least: transformers limits them in whole passes only (docs/findings/178).
    "zamba2": Twin(
        "Zamba2ForCausalLM",
        "zamba2",
        {
            "num_hidden_layers": 5,
            "layers_block_type": ["linear_attention", "hybrid"] * 2 + ["hybrid"],
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "n_mamba_heads": 8,
            "mamba_ngroups": 2,
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": True,
            "adapter_rank": 5,
            "use_mem_rope": True,
            "time_step_min": 1e-9,
            "time_step_floor": 0.02,
        },
    ),
    # No experts, as in Granite 4.0 H 350M, 1B and Micro.
    "granite-hybrid": Twin(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        {
            **_MAMBA_HEADS,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "num_hidden_layers": 4,
            "layer_types": [
                "linear_attention",
                "full_attention",
                "linear_attention",
                "full_attention",
            ],
            "position_embedding_type": "nope",
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.21,
            "logits_scaling": 8.0,
        },
    ),
    "nemotron-h": Twin(
        "NemotronHForCausalLM",
        "nemotron_h",
        {
            "mamba_num_heads": 8,
            "mamba_head_dim": 12,
            "n_groups": 2,
            "layers_block_type": [
                *("linear_attention", "mlp", "linear_attention", "full_attention"),
                *("mlp", "full_attention"),
            ],
        },
    ),
    "olmo-hybrid": Twin(
        "OlmoHybridForCausalLM",
        "olmo_hybrid",
        {
            **_DELTA_NET,
            "num_hidden_layers": 4,
            "layer_types": _LINEAR_LAYERS,
            "linear_num_value_heads": 2,
        },
    ),
    "qwen3-next": Twin(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        {**_DELTA_NET, "num_hidden_layers": 4, "layer_types": _LINEAR_LAYERS, **_PARTIAL_ROPE},
    ),
    "qwen3.5": Twin(
        "Qwen3_5ForCausalLM",
        "qwen3_5_text",
        {**_DELTA_NET, "num_hidden_layers": 4, "layer_types": _LINEAR_LAYERS, **_PARTIAL_ROPE},
    ),
    "qwen3.5-moe": Twin(
        "Qwen3_5MoeForCausalLM",
        "qwen3_5_moe_text",
        {**_DELTA_NET, "num_hidden_layers": 4, "layer_types": _LINEAR_LAYERS, **_PARTIAL_ROPE},
    ),
}
