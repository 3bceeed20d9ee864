"""Twins of dense decoders with rotary positions, after Llama; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import WINDOW
from conformance.checkpoints.twin import Twin
from conformance.checkpoints.twin_catalogue.settings import GQA, HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping


TWINS: Mapping[str, Twin] = {
    "llama": Twin("LlamaForCausalLM", "llama", {**GQA, "rms_norm_eps": 1e-5}),
    # Llama 1 and 2 below 70B: one key and value per query head.
    "llama-2": Twin(
        "LlamaForCausalLM", "llama", {**GQA, "num_key_value_heads": 6, "rms_norm_eps": 1e-5}
    ),
    "llama3-rope": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **GQA,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    # Llama 3.2 and its constants as published, which HookedTransformer has built in; tied.
    "llama-3.2": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **GQA,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "llama-linear-rope": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **GQA,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama-yarn-rope": Twin(
        "LlamaForCausalLM",
        "llama",
        {
            **GQA,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 24,
            },
        },
    ),
    "llama-bias": Twin(
        "LlamaForCausalLM",
        "llama",
        {**GQA, "rms_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": Twin("MistralForCausalLM", "mistral", {**HEAD, "sliding_window": WINDOW}),
    # Mistral since 0.3, Nemo and Small: no window.
    "mistral-nemo": Twin(
        "MistralForCausalLM",
        "mistral",
        {
            **HEAD,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen2": Twin("Qwen2ForCausalLM", "qwen2", dict(GQA)),
    "qwen2-tied": Twin("Qwen2ForCausalLM", "qwen2", {**GQA, "tie_word_embeddings": True}),
    # Qwen1.5 up to 14B: one key and value per query head.
    "qwen1.5": Twin("Qwen2ForCausalLM", "qwen2", {**GQA, "num_key_value_heads": 6}),
    "qwen1.5-tied": Twin(
        "Qwen2ForCausalLM",
        "qwen2",
        {**GQA, "num_key_value_heads": 6, "tie_word_embeddings": True},
    ),
    "granite": Twin(
        "GraniteForCausalLM",
        "granite",
        {
            **GQA,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.21,
            "logits_scaling": 8.0,
        },
    ),
    "qwen3": Twin("Qwen3ForCausalLM", "qwen3", dict(HEAD)),
    "qwen3-tied": Twin("Qwen3ForCausalLM", "qwen3", {**HEAD, "tie_word_embeddings": True}),
    "phi3": Twin("Phi3ForCausalLM", "phi3", dict(GQA)),
    # Phi-3 mini: one key and value per query head, and a window.
    "phi3-mini": Twin(
        "Phi3ForCausalLM", "phi3", {**GQA, "num_key_value_heads": 6, "sliding_window": WINDOW}
    ),
    "olmo": Twin(
        "OlmoForCausalLM",
        "olmo",
        {**GQA, "num_key_value_heads": 6, "clip_qkv": 1.5, "rope_theta": 10000.0},
    ),
    # OLMo 1B and 7B of 2024-02: nothing is clipped; 1B is tied.
    "olmo-7b": Twin("OlmoForCausalLM", "olmo", {**GQA, "num_key_value_heads": 6}),
    "olmo-1b": Twin(
        "OlmoForCausalLM", "olmo", {**GQA, "num_key_value_heads": 6, "tie_word_embeddings": True}
    ),
    "olmo2": Twin(
        "Olmo2ForCausalLM",
        "olmo2",
        {
            **GQA,
            "num_key_value_heads": 6,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "stablelm": Twin(
        "StableLmForCausalLM",
        "stablelm",
        {**GQA, "partial_rotary_factor": 0.5, "use_qkv_bias": True},
    ),
    "cohere": Twin("CohereForCausalLM", "cohere", {**GQA, "logit_scale": 0.25}),
    "smollm3": Twin("SmolLM3ForCausalLM", "smollm3", {"no_rope_layer_interval": 2}),
}
