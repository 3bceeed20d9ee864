"""Twins of more dense decoders; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import N_CTX, WINDOW
from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping

#: As published: yarn where attention is full, plain rotary positions where it slides.
_OLMO3 = {
    "num_hidden_layers": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "original_max_position_embeddings": N_CTX // 8,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "attention_factor": 1.2079441541679836,
        },
    },
}
#: Grouped as published, where the config class is not by default.
_GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2}

TWINS: Mapping[str, Twin] = {
    "arcee": Twin("ArceeForCausalLM", "arcee", _GROUPED),
    "nemotron": Twin("NemotronForCausalLM", "nemotron", {**_GROUPED, "head_dim": 12}),
    "jais2": Twin("Jais2ForCausalLM", "jais2"),
    "starcoder2": Twin("Starcoder2ForCausalLM", "starcoder2", {"sliding_window": WINDOW}),
    "seed-oss": Twin("SeedOssForCausalLM", "seed_oss"),
    "ernie4_5": Twin("Ernie4_5ForCausalLM", "ernie4_5"),
    "ministral3": Twin("Ministral3ForCausalLM", "ministral3", {"head_dim": 10}),
    "glm": Twin("GlmForCausalLM", "glm", {"head_dim": 12}),
    "glm4": Twin("Glm4ForCausalLM", "glm4", {"head_dim": 12}),
    # Olmo 3 32B, and 7B, in which every query head has its own key and value head.
    "olmo3": Twin("Olmo3ForCausalLM", "olmo3", {**_OLMO3, **_GROUPED}),
    "olmo3-7b": Twin("Olmo3ForCausalLM", "olmo3", _OLMO3),
    "apertus": Twin("ApertusForCausalLM", "apertus", _GROUPED, {"act_fn.eps": 0.0}),
    "gpt-bigcode": Twin("GPTBigCodeForCausalLM", "gpt_bigcode", {"n_head": 6}),
    # Quarters of the heads are stored together: two heads in each.
    "codegen": Twin("CodeGenForCausalLM", "codegen", {"n_head": 8, "rotary_dim": 4}),
    "hunyuan": Twin(
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        {
            **_GROUPED,
            "head_dim": 10,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 1000.0,
                "factor": 1.0,
            },
        },
    ),
    "nanochat": Twin("NanoChatForCausalLM", "nanochat", _GROUPED),
    "bitnet": Twin("BitNetForCausalLM", "bitnet"),
    "xglm": Twin("XGLMForCausalLM", "xglm"),
    "modernbert-decoder": Twin("ModernBertDecoderForCausalLM", "modernbert-decoder"),
    "cohere2": Twin("Cohere2ForCausalLM", "cohere2", {**_GROUPED, "num_hidden_layers": 4}),
    "exaone4": Twin("Exaone4ForCausalLM", "exaone4", {**_GROUPED, "num_hidden_layers": 4}),
}
