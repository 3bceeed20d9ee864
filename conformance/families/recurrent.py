"""Models in which a state-space model, a linear attention or a convolution mixes positions, in
every block or in some, as HuggingFace's modelling files lay them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.families.base import OF_ATTENTION, Family, like
from conformance.families.changes import dense, gated, mixed, without_attention
from conformance.families.decoders import LLAMA, MOE

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

_JAMBA = like(
    LLAMA,
    "JambaForCausalLM",
    **{**MOE, "router": "feed_forward.router", "experts": "feed_forward.experts"},
    ln2="pre_ff_layernorm",
    mlp="feed_forward",
    ln_final="model.final_layernorm",
    rotary=False,
)


def _rwkv(config: Any) -> Family:
    """RWKV-4 (Peng et al. 2023): a linear recurrence, and an MLP that sees the token before."""
    own = tuple(f"feed_forward.{name}" for name in ("time_mix_key", "time_mix_receptance"))
    base = Family(
        architecture="RwkvForCausalLM",
        block="rwkv.blocks.{l}",
        embed="rwkv.embeddings",
        ln1="ln1",
        mixer="attention",
        ln2="ln2",
        mlp="feed_forward",
        up="feed_forward.key",
        down="feed_forward.value",
        mlp_shifted=True,
        receptance="feed_forward.receptance",
        unnamed=(*own, "feed_forward.receptance"),
        ln_final="rwkv.ln_out",
        unembed="head",
        rotary=False,
    )
    first = like(base, base.architecture, ln_pre="pre_ln")
    layers = (first, *(base,) * (config.num_hidden_layers - 1))
    return like(base, base.architecture, layers=layers)


def _jamba(config: Any) -> Family:
    layers = []
    for kind, experts in zip(config.layers_block_type, config.layers_num_experts, strict=True):
        own = dense(_JAMBA) if experts == 1 else _JAMBA
        layers.append(own if kind == "attention" else without_attention(own, "mamba"))
    return like(_JAMBA, "JambaForCausalLM", layers=tuple(layers))


def _bamba(config: Any) -> Family:
    base = like(
        LLAMA,
        "BambaForCausalLM",
        ln2="pre_ff_layernorm",
        **gated("feed_forward"),
        ln_final="model.final_layernorm",
    )
    return mixed(base, config.layers_block_type, "mamba")


_LFM2 = like(
    LLAMA,
    "Lfm2ForCausalLM",
    o="self_attn.out_proj",
    q_norm="self_attn.q_layernorm",
    k_norm="self_attn.k_layernorm",
    qk_norm="per_head",
    ln1="operator_norm",
    ln2="ffn_norm",
    ln_final="model.embedding_norm",
    **gated("feed_forward", ("w1", "w3", "w2")),
)


def _lfm2(config: Any) -> Family:
    return mixed(_LFM2, config.layer_types, "conv")


def _lfm2_moe(config: Any) -> Family:
    experts = {
        "router": "feed_forward.gate",
        "experts": "feed_forward.experts",
        "unnamed": ("feed_forward.expert_bias",) if config.use_expert_bias else (),
    }
    plain = mixed(like(_LFM2, "Lfm2MoeForCausalLM"), config.layer_types, "conv")
    sparse = mixed(
        like(plain, plain.architecture, **{**MOE, **experts}), config.layer_types, "conv"
    )
    first = config.num_dense_layers
    return like(plain, plain.architecture, layers=(*plain.layers[:first], *sparse.layers[first:]))


def _recurrent_gemma(config: Any) -> Family:
    """Griffin (De et al. 2024): two gated linear recurrences, then attention within a window."""
    base = like(
        LLAMA,
        "RecurrentGemmaForCausalLM",
        attn="temporal_block",
        **{part: f"temporal_block.{part}_proj" for part in "qkvo"},
        ln1="temporal_pre_norm",
        ln2="channel_pre_norm",
        **gated("mlp_block"),
        ln_final="model.final_norm",
        norm_offset=True,
        embed_multiplier=float(config.hidden_size) ** 0.5,
    )
    return mixed(base, config.layers_block_type, "temporal_block")


def _falcon_h1(config: Any) -> Family:
    """Attention and a state-space model side by side: both read one norm's output."""
    return like(
        LLAMA,
        "FalconH1ForCausalLM",
        mixer="mamba",
        ln2="pre_ff_layernorm",
        **gated("feed_forward"),
        ln_final="model.final_layernorm",
        embed_multiplier=float(config.embedding_multiplier),
        attn_multiplier=float(config.attention_out_multiplier),
        mlp_multiplier=float(config.mlp_multipliers[1]),
    )


def _zamba2(config: Any) -> Family:
    """State-space models, some of which read what a transformer block made of the stream and the
    embedding.

    One such block, or two in turn, serves all those layers; what a layer makes of its output goes
    to the state-space model's norm and not to the stream (Glorioso et al. 2024).
    """
    base = like(
        _MAMBA,
        "Zamba2ForCausalLM",
        block="model.layers.{l}",
        embed="model.embed_tokens",
        ln1="input_layernorm",
        mixer="mamba",
        ln_final="model.final_layernorm",
    )
    shared = like(
        base,
        base.architecture,
        ln1="mamba_decoder.input_layernorm",
        mixer="mamba_decoder.mamba",
        reads_embedding=True,
        unnamed=("shared_transformer", "linear"),
        notes=dict.fromkeys(
            OF_ATTENTION, "attention is a shared block's, and reads the stream beside the embedding"
        ),
    )
    kinds = {"hybrid": shared, "linear_attention": base}
    layers = tuple(kinds[kind] for kind in config.layers_block_type)
    return like(base, base.architecture, layers=layers)


def _granite_hybrid(config: Any) -> Family:
    base = like(
        LLAMA,
        "GraniteMoeHybridForCausalLM",
        mlp="shared_mlp",
        gate=None,
        up=None,
        gate_up="shared_mlp.input_linear",
        down="shared_mlp.output_linear",
        rotary=config.position_embedding_type == "rope",
        embed_multiplier=float(config.embedding_multiplier),
        residual_multiplier=float(config.residual_multiplier),
    )
    return mixed(base, config.layer_types, "mamba")


def _nemotron_h(config: Any) -> Family:
    """Blocks of one norm and one module each: attention, a state-space model or an MLP."""
    one = "the block is one norm and one module"
    bare = like(
        _MAMBA,
        "NemotronHForCausalLM",
        block="model.layers.{l}",
        embed="model.embeddings",
        ln_final="model.norm_f",
        notes={"resid_mid": one, "ln2": one},
    )
    attention = like(
        bare,
        bare.architecture,
        mixer=None,
        attn="mixer",
        **{part: f"mixer.{part}_proj" for part in "qkvo"},
    )
    mlp = like(
        bare,
        bare.architecture,
        mixer=None,
        mlp="mixer",
        up="mixer.up_proj",
        down="mixer.down_proj",
        parallel=True,
        mlp_reads_ln1=True,
    )
    by_kind = {"linear_attention": bare, "full_attention": attention, "mlp": mlp}
    return like(bare, bare.architecture, layers=tuple(by_kind[k] for k in config.layer_types))


def _olmo_hybrid(config: Any) -> Family:
    """Norms after attention and its MLP; before a linear attention and its MLP."""
    before = like(LLAMA, "OlmoHybridForCausalLM")
    after = like(
        before,
        before.architecture,
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        qk_norm="full",
        ln1=None,
        ln1_post="post_attention_layernorm",
        ln2=None,
        ln2_post="post_feedforward_layernorm",
        rotary=bool((config.rope_parameters or {}).get("rope_theta")),
    )
    linear = without_attention(before, "linear_attn")
    layers = tuple(after if k == "full_attention" else linear for k in config.layer_types)
    return like(before, before.architecture, layers=layers)


_QWEN3_5 = like(
    LLAMA,
    "Qwen3_5ForCausalLM",
    q_gated=True,
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    qk_norm="per_head",
    norm_offset=True,
)
_QWEN3_5_MOE: dict[str, Any] = {
    "gate": None,
    "up": None,
    "down": None,
    "router": "mlp.gate",
    "experts": "mlp.experts",
    "expert_layout": "gate_up_out_in",
    "shared": "mlp.shared_expert",
    "shared_gate": "mlp.shared_expert_gate",
}


def _qwen3_5(config: Any) -> Family:
    return mixed(_QWEN3_5, config.layer_types, "linear_attn")


def _qwen3_5_moe(config: Any) -> Family:
    base = like(_QWEN3_5, "Qwen3_5MoeForCausalLM", **_QWEN3_5_MOE)
    return mixed(base, config.layer_types, "linear_attn")


def _qwen3_next(config: Any) -> Family:
    base = like(_QWEN3_5, "Qwen3NextForCausalLM", **_QWEN3_5_MOE)
    return mixed(base, config.layer_types, "linear_attn")


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    "MambaForCausalLM": _MAMBA,
    "Mamba2ForCausalLM": like(_MAMBA, "Mamba2ForCausalLM"),
    "FalconMambaForCausalLM": like(_MAMBA, "FalconMambaForCausalLM"),
    "RwkvForCausalLM": _rwkv,
    "JambaForCausalLM": _jamba,
    "BambaForCausalLM": _bamba,
    "Lfm2ForCausalLM": _lfm2,
    "Lfm2MoeForCausalLM": _lfm2_moe,
    "RecurrentGemmaForCausalLM": _recurrent_gemma,
    "FalconH1ForCausalLM": _falcon_h1,
    "Zamba2ForCausalLM": _zamba2,
    "GraniteMoeHybridForCausalLM": _granite_hybrid,
    "NemotronHForCausalLM": _nemotron_h,
    "OlmoHybridForCausalLM": _olmo_hybrid,
    "Qwen3NextForCausalLM": _qwen3_next,
    "Qwen3_5ForCausalLM": _qwen3_5,
    "Qwen3_5MoeForCausalLM": _qwen3_5_moe,
}
