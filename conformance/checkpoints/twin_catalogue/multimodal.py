"""Twins of decoders that see images or hear sounds; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checkpoints.twin import Twin
from conformance.checkpoints.twin_catalogue.gemma import GEMMA4, GEMMA4_SAME

if TYPE_CHECKING:
    from collections.abc import Mapping

_GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2}
_LINEAR = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_DELTA_NET: Mapping[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 9,
    "num_hidden_layers": 4,
    "layer_types": _LINEAR,
    "head_dim": 24,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 2, 1],
    },
}
#: Half of each head's rotated pairs, by time, height and width.
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 1]}


def _twin(name: str, model_type: str, text: Mapping[str, Any], **config: Any) -> Twin:
    return Twin(f"{name}ForConditionalGeneration", model_type, {"text_config": text, **config})


def _gemma3(scalar: int) -> Twin:
    text = {
        **_GROUPED,
        "num_hidden_layers": 7,
        "query_pre_attn_scalar": scalar,
        "head_dim": 10,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        },
    }
    vision = {"vision_use_head": False}
    return _twin("Gemma3", "gemma3", text, mm_tokens_per_image=4, vision_config=vision)


TWINS: Mapping[str, Twin] = {
    # As Gemma 3 4B and 12B; 27B scales queries by d_model / heads.
    "gemma3-vision": _gemma3(10),
    "gemma3-27b-vision": _gemma3(8),
    # As Gemma 4 E2B and E4B, without what hears.
    "gemma4-vision": _twin(
        "Gemma4",
        "gemma4",
        GEMMA4,
        vision_config={
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
            "num_key_value_heads": 4,
        },
    ),
    # As Gemma 4 12B: patches go to the language model without a tower.
    "gemma4-12b": _twin(
        "Gemma4Unified",
        "gemma4_unified",
        GEMMA4_SAME,
        vision_config={
            "pooling_kernel_size": 2,
            "patch_size": 3,
            "mm_embed_dim": 48,
            "mm_posemb_size": 16,
            "output_proj_dims": 48,
        },
    ),
    # As LLaVA 1.5 7B.
    "llava": _twin(
        "Llava",
        "llava",
        {"head_dim": 8, "rms_norm_eps": 1e-5},
        vision_config={"num_hidden_layers": 3},
    ),
    "llava-next": _twin(
        "LlavaNext",
        "llava_next",
        {"head_dim": 8, "rms_norm_eps": 1e-5},
        vision_config={"num_hidden_layers": 3},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    ),
    "llava-onevision": _twin(
        "LlavaOnevision",
        "llava_onevision",
        _GROUPED,
        vision_config={"vision_use_head": False},
        image_grid_pinpoints=[[28, 28], [28, 56], [56, 28], [56, 56]],
    ),
    "mistral3": _twin("Mistral3", "mistral3", {"head_dim": 10}),
    "idefics3": _twin("Idefics3", "idefics3", {"head_dim": 10, **_GROUPED}),
    "llama4-vision": _twin(
        "Llama4",
        "llama4",
        {
            "num_hidden_layers": 4,
            "head_dim": 10,
            "intermediate_size": 28,
            "intermediate_size_mlp": 80,
            "num_experts_per_tok": 1,
            "moe_layers": [1, 3],
            "no_rope_layers": [1, 0, 0, 1],
            "attention_chunk_size": 20,
            "floor_scale": 5,
        },
        vision_config={
            "vision_output_dim": 24,
            "projector_input_dim": 24,
            "projector_output_dim": 24,
            "intermediate_size": 128,
        },
    ),
    "qwen2.5-vl": _twin(
        "Qwen2_5_VL",
        "qwen2_5_vl",
        {**_GROUPED, "rope_parameters": {**_SECTIONS, "mrope_section": [1, 1, 2]}},
        vision_config={"fullatt_block_indexes": [1], "window_size": 28},
    ),
    "qwen3-vl": _twin(
        "Qwen3VL",
        "qwen3_vl",
        {**_GROUPED, "head_dim": 10, "rope_parameters": _SECTIONS},
        vision_config={"deepstack_visual_indexes": [0]},
    ),
    "qwen3-vl-moe": _twin(
        "Qwen3VLMoe",
        "qwen3_vl_moe",
        {**_GROUPED, "head_dim": 10, "rope_parameters": _SECTIONS},
        vision_config={"deepstack_visual_indexes": [0]},
    ),
    "qwen3.5-vision": _twin("Qwen3_5", "qwen3_5", _DELTA_NET),
    "qwen3.5-moe-vision": _twin("Qwen3_5Moe", "qwen3_5_moe", _DELTA_NET),
    "glm4v": _twin(
        "Glm4v",
        "glm4v",
        {
            **_GROUPED,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [1, 1, 0],
            },
        },
    ),
    "qwen2-audio": _twin("Qwen2Audio", "qwen2_audio", {}),
    "audio-flamingo3": _twin("AudioFlamingo3", "audioflamingo3", _GROUPED),
    "music-flamingo": _twin("MusicFlamingo", "musicflamingo", _GROUPED),
    # Four frames are put together, as wide as the tower's MLP.
    "glm-asr": _twin("GlmAsr", "glmasr", {"head_dim": 10}, audio_config={"intermediate_size": 128}),
    "muse-glimmer": _twin(
        "MuseGlimmer",
        "muse_glimmer",
        {**_GROUPED, "head_dim": 10, "num_hidden_layers": 5},
        vision_config={"pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16},
        out_hidden_size=128,
        projector_hidden_size=40,
    ),
    # An image is tokens to it: four, and the end of a row.
    "emu3": _twin(
        "Emu3",
        "emu3",
        {"pad_token_id": 0},
        vocabulary_map={
            "<|extra_200|>": 108,
            **{f"<|visual token {i:06d}|>": 109 + i for i in range(4)},
        },
        vq_config={
            "base_channels": 32,
            "channel_multiplier": [1, 2],
            "hidden_size": 16,
            "codebook_size": 4,
        },
    ),
}
