"""Decoders with multi-head latent attention (DeepSeek-V2 and those after it): keys and values are
made of a latent, and only a part of each query and key is rotated."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.families.base import Family, like
from conformance.families.experts import CORRECTION, by_layer

if TYPE_CHECKING:
    from collections.abc import Callable

_PARTLY = "only a part of each head is rotated: no module holds the whole before it"
_YOUTU = Family(
    architecture="YoutuForCausalLM",
    block="model.layers.{l}",
    embed="model.embed_tokens",
    attn="self_attn",
    kv_latent="self_attn.kv_b_proj",
    o="self_attn.o_proj",
    mlp="mlp",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    ln_final="model.norm",
    notes={"attn.q": _PARTLY, "attn.k": _PARTLY},
)
_DEEPSEEK_V3 = like(
    _YOUTU,
    "DeepseekV3ForCausalLM",
    gate=None,
    up=None,
    down=None,
    router="mlp.gate",
    experts="mlp.experts",
    expert_layout="gate_up_out_in",
    shared="mlp.shared_experts",
    unnamed=(CORRECTION,),
)
#: The way to queries, keys and values; a latent of queries is optional.
_LATENTS = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
_QUERY_LATENTS = ("q_a_proj", "q_a_layernorm", "q_b_proj")


def _latents(config: Any) -> tuple[str, ...]:
    queries = ("q_proj",) if config.q_lora_rank is None else _QUERY_LATENTS
    return tuple(f"self_attn.{path}" for path in (*queries, *_LATENTS))


def _youtu(config: Any) -> Family:
    return like(_YOUTU, "YoutuForCausalLM", unnamed=_latents(config))


def _deepseek(architecture: str, *corrections: str) -> Callable[[Any], Family]:
    def described(config: Any) -> Family:
        kinds = getattr(config, "mlp_layer_types", None)
        if kinds is None:
            dense, n_layers = config.first_k_dense_replace, config.num_hidden_layers
            kinds = ["dense" if i < dense else "sparse" for i in range(n_layers)]
        unnamed = (*_latents(config), *corrections)
        fam = like(_DEEPSEEK_V3, architecture, unnamed=unnamed)
        return by_layer(fam, (kind == "sparse" for kind in kinds))

    return described


def _glm_dsa(config: Any) -> Family:
    """Layers without an indexer of their own use what the last one before them chose."""
    fam = _deepseek("GlmMoeDsaForCausalLM", CORRECTION)(config)
    layers = zip(fam.layers, config.indexer_types, strict=True)
    indexer = {"full": ("self_attn.indexer",), "shared": ()}
    return dataclasses.replace(
        fam,
        layers=tuple(
            dataclasses.replace(own, indexed=True, unnamed=(*own.unnamed, *indexer[kind]))
            for own, kind in layers
        ),
    )


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    "YoutuForCausalLM": _youtu,
    "DeepseekV2ForCausalLM": _deepseek("DeepseekV2ForCausalLM"),
    "DeepseekV3ForCausalLM": _deepseek("DeepseekV3ForCausalLM", CORRECTION),
    "GlmMoeDsaForCausalLM": _glm_dsa,
    "Glm4MoeLiteForCausalLM": _deepseek("Glm4MoeLiteForCausalLM", CORRECTION),
}
