"""Decoders of attention and a mixture of experts, as HuggingFace's modelling files lay them out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.families.base import Family, like
from conformance.families.changes import dense
from conformance.families.decoders import LLAMA, MOE, QK_NORM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_OLMOE = like(LLAMA, "OlmoeForCausalLM", **MOE, **QK_NORM, qk_norm="full")
#: Queries and keys as they are.
_PLAIN: dict[str, Any] = {"q_norm": None, "k_norm": None, "qk_norm": None}
#: Attention and MLP read the stream itself; norms come after them.
_POST_NORM: dict[str, Any] = {
    "ln1": None,
    "ln1_post": "post_attention_layernorm",
    "ln2": None,
    "ln2_post": "post_feedforward_layernorm",
}
#: What is added to scores when experts are chosen, and to nothing else.
CORRECTION = "mlp.gate.e_score_correction_bias"


def by_layer(fam: Family, sparse: Iterable[object], mlp: str = "mlp") -> Family:
    """A model whose layers are mixtures of experts or plain gated MLPs.

    Args:
        fam: its layers with experts.
        sparse: for each layer whether it has experts.
        mlp: path of the plain MLP, relative to the block.
    """
    plain = dataclasses.replace(
        dense(dataclasses.replace(fam, mlp=mlp)),
        unnamed=tuple(path for path in fam.unnamed if not path.startswith(f"{mlp}.")),
    )
    layers = tuple(fam if experts else plain for experts in sparse)
    return dataclasses.replace(fam, layers=layers)


def _granite(config: Any) -> Family:
    inside = "block_sparse_moe"
    return like(
        _OLMOE,
        "GraniteMoeForCausalLM",
        **_PLAIN,
        mlp=inside,
        router=f"{inside}.router",
        experts=f"{inside}.experts",
        embed_multiplier=float(config.embedding_multiplier),
        residual_multiplier=float(config.residual_multiplier),
    )


def _ernie(config: Any) -> Family:
    fam = like(
        _OLMOE,
        "Ernie4_5_MoeForCausalLM",
        **_PLAIN,
        rotary_adjacent=True,
        shared="mlp.shared_experts" if config.moe_num_shared_experts else None,
        unnamed=("mlp.gate.moe_statics",),
    )
    first, last = config.moe_layer_start_index, config.moe_layer_end_index
    step = config.moe_layer_interval
    return by_layer(
        fam, ((i + 1) % step == 0 and first <= i <= last for i in range(config.num_hidden_layers))
    )


def _glm4(config: Any) -> Family:
    norms: dict[str, Any] = {"qk_norm": "per_head"} if config.use_qk_norm else _PLAIN
    fam = like(
        _OLMOE,
        "Glm4MoeForCausalLM",
        **norms,
        shared="mlp.shared_experts",
        unnamed=(CORRECTION,),
    )
    dense_layers = config.first_k_dense_replace
    return by_layer(fam, (i >= dense_layers for i in range(config.num_hidden_layers)))


def _afmoe(config: Any) -> Family:
    """Only layers with a window rotate queries and keys."""
    fam = like(
        _OLMOE,
        "AfmoeForCausalLM",
        qk_norm="per_head",
        attn_gate="self_attn.gate_proj",
        ln1_post="post_attention_layernorm",
        ln2="pre_mlp_layernorm",
        ln2_post="post_mlp_layernorm",
        router="mlp.router.gate",
        shared="mlp.shared_experts",
        unnamed=("self_attn.gate_proj", "mlp.expert_bias"),
        embed_multiplier=config.hidden_size**0.5 if config.mup_enabled else 1.0,
    )
    n_layers, dense_layers = config.num_hidden_layers, config.num_dense_layers
    fam = by_layer(fam, (i >= dense_layers for i in range(n_layers)))
    local = [kind == "sliding_attention" for kind in config.layer_types]
    layers = zip(fam.layers, local, strict=True)
    return dataclasses.replace(
        fam, layers=tuple(dataclasses.replace(own, rotary=turned) for own, turned in layers)
    )


def _laguna(config: Any) -> Family:
    fam = like(
        _OLMOE,
        "LagunaForCausalLM",
        qk_norm="per_head",
        attn_gate="self_attn.g_proj",
        attn_gate_by="softplus",
        shared="mlp.shared_experts",
        unnamed=("self_attn.g_proj", CORRECTION),
    )
    return by_layer(fam, (kind == "sparse" for kind in config.mlp_layer_types))


def _llama4(config: Any) -> Family:
    """Queries and keys are normalised after their rotation, in the layers that rotate them."""
    inside, later = "feed_forward", "normalised after the rotation, by one module for both"
    fam = like(
        _OLMOE,
        "Llama4ForCausalLM",
        **_PLAIN,
        mlp=inside,
        router=f"{inside}.router",
        router_output=1,
        experts=f"{inside}.experts",
        expert_layout="gate_up_in_out",
        shared=f"{inside}.shared_expert",
    )
    n_layers = config.num_hidden_layers
    fam = by_layer(fam, (i in config.moe_layers for i in range(n_layers)), inside)
    layers = zip(fam.layers, config.no_rope_layers, strict=True)
    notes = {"attn.q_normed": later, "attn.k_normed": later} if config.use_qk_norm else {}
    return dataclasses.replace(
        fam,
        layers=tuple(
            dataclasses.replace(own, rotary=bool(turned), notes=notes if turned else {})
            for own, turned in layers
        ),
    )


_BY_EXPERTS = "made for each token by the attention experts that it is sent to"
_JETMOE = like(
    _OLMOE,
    "JetMoeForCausalLM",
    **_PLAIN,
    attn="self_attention",
    o=None,
    q=None,
    k=None,
    v=None,
    tiled=True,
    router="mlp.router.layer",
    experts="mlp",
    expert_names=("input_linear.weight", "output_linear.weight"),
    unnamed=("self_attention.kv_proj", "self_attention.experts", "mlp.bias"),
    notes={"attn.q": _BY_EXPERTS, "attn.z": _BY_EXPERTS},
)

FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    "OlmoeForCausalLM": _OLMOE,
    "FlexOlmoForCausalLM": like(_OLMOE, "FlexOlmoForCausalLM", **_POST_NORM),
    "MiniMaxM2ForCausalLM": like(
        _OLMOE, "MiniMaxM2ForCausalLM", unnamed=("mlp.e_score_correction_bias",)
    ),
    "JetMoeForCausalLM": _JETMOE,
    "GraniteMoeForCausalLM": _granite,
    "Ernie4_5_MoeForCausalLM": _ernie,
    "Glm4MoeForCausalLM": _glm4,
    "AfmoeForCausalLM": _afmoe,
    "LagunaForCausalLM": _laguna,
    "Llama4ForCausalLM": _llama4,
}
