"""Models in which a state-space model, a linear attention or a convolution mixes positions, in
every block or in some, as HuggingFace's modelling files lay them out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.families.base import Family, like

if TYPE_CHECKING:
    from collections.abc import Callable

#: A block of one norm and one mixer.
_MAMBA = Family(
    architecture="MambaForCausalLM",
    block="backbone.layers.{l}",
    embed="backbone.embeddings",
    ln1="norm",
    mixer="mixer",
    ln2=None,
    ln_final="backbone.norm_f",
    rotary=False,
)

_JAMBA = Family(
    architecture="JambaForCausalLM",
    block="model.layers.{l}",
    embed="model.embed_tokens",
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    ln2="pre_ff_layernorm",
    mlp="feed_forward",
    router="feed_forward.router",
    experts="feed_forward.experts",
    expert_layout="gate_up_out_in",
    ln_final="model.final_layernorm",
    rotary=False,
)

_OF_ATTENTION = ("attn", "o", "q", "k", "v", "qkv", "q_norm", "k_norm", "qk_norm", "sinks")
_OF_EXPERTS = ("router", "experts", "expert_layout", "shared", "shared_gate")


def without_attention(fam: Family, mixer: str) -> Family:
    """The same block with a mixer in attention's place."""
    none: dict[str, Any] = dict.fromkeys(_OF_ATTENTION)
    return dataclasses.replace(fam, **none, rotary=False, mixer=mixer)


def dense(fam: Family, gate: str, up: str, down: str) -> Family:
    """The same block with a gated MLP in the experts' place; paths relative to the block."""
    none: dict[str, Any] = dict.fromkeys(_OF_EXPERTS)
    return dataclasses.replace(fam, **none, gate=gate, up=up, down=down)


def _jamba(config: Any) -> Family:
    layers = []
    for kind, experts in zip(config.layers_block_type, config.layers_num_experts, strict=True):
        own = _JAMBA
        if experts == 1:
            own = dense(own, *(f"feed_forward.{p}_proj" for p in ("gate", "up", "down")))
        layers.append(own if kind == "attention" else without_attention(own, "mamba"))
    return like(_JAMBA, "JambaForCausalLM", layers=tuple(layers))


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    "MambaForCausalLM": _MAMBA,
    "JambaForCausalLM": _jamba,
}
