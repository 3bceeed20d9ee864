"""Decoders whose layers differ in the sizes of their heads, share keys and values, and are given an
embedding of each token of their own (Gemma 4), as HuggingFace's modelling files lay them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.families.base import Family, like
from conformance.families.decoders import LLAMA, QK_NORM

if TYPE_CHECKING:
    from collections.abc import Callable

_GEMMA4 = like(
    LLAMA,
    "Gemma4ForCausalLM",
    **QK_NORM,
    qk_norm="per_head",
    v_norm="self_attn.v_norm",
    unscaled=True,
    embed_scaled=True,
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
    stream_scale="layer_scalar",
)
#: What a layer lacks that reads another's keys and values.
_SHARED: dict[str, Any] = dict.fromkeys(("k", "v", "k_norm", "v_norm"))
_PER_LAYER: dict[str, Any] = {
    "per_layer": "per_layer_input_gate",
    "per_layer_out": "post_per_layer_input_norm",
    "unnamed": ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"),
}
#: Where the tables and the projection lie that make every layer's embeddings.
_TABLES = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
_BESIDE: dict[str, Any] = {
    "router": "router.proj",
    "experts": "experts",
    "expert_layout": "gate_up_out_in",
    "unnamed": (
        *("router.scale", "router.per_expert_scale", "pre_feedforward_layernorm_2"),
        *("post_feedforward_layernorm_1", "post_feedforward_layernorm_2"),
    ),
}


def source_of(kinds: list[str], shared: int, layer: int) -> int | None:
    """The layer whose keys and values a layer reads; None where it has its own.

    Args:
        kinds: of each layer.
        shared: how many layers at the end have none: each reads the last of its kind before them.
    """
    first = len(kinds) - shared
    if layer < first:
        return None
    return max(i for i in range(first) if kinds[i] == kinds[layer])


def _gemma4(config: Any) -> Family:
    base = _GEMMA4
    if getattr(config, "hidden_size_per_layer_input", 0):
        towers = tuple(f"model.{name}" for name in _TABLES)
        base = like(base, base.architecture, **_PER_LAYER, towers=towers)
    if getattr(config, "enable_moe_block", False):
        unnamed = (*base.unnamed, *_BESIDE["unnamed"])
        base = like(base, base.architecture, **{**_BESIDE, "unnamed": unnamed})
    layers = []
    for layer, kind in enumerate(config.layer_types):
        source = source_of(config.layer_types, config.num_kv_shared_layers, layer)
        own = base if source is None else like(base, base.architecture, **_SHARED, kv_from=source)
        if source is None and config.attention_k_eq_v and kind == "full_attention":
            own = like(own, own.architecture, v=None)
        layers.append(own)
    return like(base, base.architecture, layers=tuple(layers))


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {"Gemma4ForCausalLM": _gemma4}
