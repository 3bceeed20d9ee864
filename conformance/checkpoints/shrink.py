"""Shrinks any HuggingFace config class: the same mathematics at the size of a twin.

Every size a config class has is replaced by name, nested configs too; every other setting keeps
the class's own default, which is what published checkpoints of the architecture mostly have.
No two dimensions of a matrix are equal where the names allow it, so that a transposition shows;
grouped heads come in threes, so that tiling and repeating differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.classes import config_of_type

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Context length of every twin that has one, and its sliding window.
N_CTX = 96
WINDOW = 12
N_LAYERS = 3

_D_MODEL, _D_MLP, _D_EXPERT, _D_SHARED = 48, 80, 28, 36
#: What each size is called in the config classes of transformers -> its value in a twin.
_SIZES: Mapping[str, Any] = {
    **{"vocab_size": 113, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "lru_width"), _D_MODEL),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), N_LAYERS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), _D_MLP),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), N_CTX
    ),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), WINDOW),
    # --- experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 5),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "experts_per_token", "moe_k"), 2),
    "top_k_experts": 2,
    **dict.fromkeys(("moe_intermediate_size", "expert_dim"), _D_EXPERT),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), _D_SHARED),
    # --- latent attention
    **{"q_lora_rank": 22, "kv_lora_rank": 26, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4},
    **{"v_head_dim": 12},
    # --- state-space models and linear attention
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 7),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 5),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
}
#: Towers for images and sounds: narrower than the language model, and of two layers.
_TOWERS = ("vision_config", "audio_config", "vq_config")
_TOWER: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim"), 44),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads"), 4),
    **{"head_dim": 8, "image_size": 28, "patch_size": 7, "num_mel_bins": 9, "projection_dim": 20},
    **{"out_hidden_size": _D_MODEL, "max_source_positions": 20, "num_position_embeddings": 16},
}
#: Tokens that stand for images and sounds come last in a vocabulary.
_STAND_INS: Mapping[str, int] = {
    **dict.fromkeys(("image_token_id", "image_token_index", "audio_token_id"), 112),
    **dict.fromkeys(("video_token_id", "video_token_index", "audio_token_index"), 111),
    **dict.fromkeys(("vision_start_token_id", "image_start_token_id", "boi_token_index"), 110),
    **dict.fromkeys(("vision_end_token_id", "image_end_token_id", "eoi_token_index"), 109),
    **dict.fromkeys(("video_start_token_id", "audio_bos_token_id"), 108),
    **dict.fromkeys(("video_end_token_id", "audio_eos_token_id"), 107),
}
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
#: Who names one of these names them all: none is made smaller then, and nor is ``head_dim``.
HEADS = (*_HEADS, *_KV_HEADS)
_GROUPED, _UNGROUPED, _KV, _D_HEAD = 6, 4, 2, 10
#: Scaled rotary embeddings were trained on a context this many times shorter than the twin's.
_ORIGINAL, _ORIGINAL_CONTEXT = "original_max_position_embeddings", N_CTX // 3


def shrink(model_type: str, changes: Mapping[str, Any]) -> Any:
    """A small config of a HuggingFace config class.

    Args:
        model_type: the class, by its ``model_type``.
        changes: settings of this twin's own; a mapping for a nested config is merged into it.

    Returns:
        The ``transformers`` config.
    """

    return config_of_type(model_type, **arguments_of(model_type, changes))


def arguments_of(model_type: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What to make :func:`shrink`'s config with."""

    return arguments(config_of_type(model_type), changes)


def arguments(default: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What to make a config class with, given one made with its own defaults."""
    stated = default.to_dict()
    # Some names are aliases that to_dict leaves out.
    names = {*stated, *getattr(default, "attribute_map", {})}
    aliases = set(getattr(default, "attribute_map", {}))
    small = {k: v for k, v in _SIZES.items() if k in names and k not in aliases}
    small = {k: v for k, v in small.items() if stated.get(k) is not None or k.endswith("_id")}
    if not set(HEADS) & set(changes):
        small |= _heads(stated)
    small |= _rope(stated)
    for name in getattr(default, "sub_configs", {}):
        inner = getattr(default, name, None)
        if inner is None and name in changes:  # left out by default
            inner = default.sub_configs[name]()
        if inner is not None:
            own = changes.get(name, {})
            if name in _TOWERS:
                held = inner.to_dict()
                own = {**{k: v for k, v in _TOWER.items() if held.get(k) is not None}, **own}
            small[name] = {**arguments(inner, own), "model_type": inner.model_type}
    if "text_config" in small:
        small |= {k: v for k, v in _STAND_INS.items() if k in names}
    return {**small, **{k: v for k, v in changes.items() if k not in default.sub_configs}}


def _heads(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Grouped where the class groups by default, and head sizes where it states one."""
    heads = next((n for n in _HEADS if isinstance(stated.get(n), int)), None)
    if heads is None:
        return {}
    kv = next((n for n in _KV_HEADS if stated.get(n) is not None), None)
    grouped = kv is not None and stated[kv] != stated[heads]
    found: dict[str, Any] = {heads: _GROUPED if kv is not None else _UNGROUPED}
    if kv is not None:
        found[kv] = _KV if grouped else _GROUPED
    width = stated.get("hidden_size")
    derived = isinstance(width, int) and stated.get("head_dim") == width // stated[heads]
    if isinstance(stated.get("head_dim"), int) and "kv_lora_rank" not in stated and not derived:
        found["head_dim"] = _D_HEAD
    return found


def _rope(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Scaled rotary embeddings with a shorter original context; others stay as they are."""
    rope = stated.get("rope_parameters")
    if not isinstance(rope, dict) or _ORIGINAL not in str(rope):
        return {}

    def short(one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, **({_ORIGINAL: _ORIGINAL_CONTEXT} if _ORIGINAL in one else {})}

    nested = {k: short(v) for k, v in rope.items() if isinstance(v, dict)}
    return {"rope_parameters": {**short(rope), **nested}}
