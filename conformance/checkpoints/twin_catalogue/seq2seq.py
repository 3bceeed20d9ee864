"""Twins of encoders with a decoder; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checkpoints.shrink import N_CTX
from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping

_T5: Mapping[str, Any] = {
    "d_kv": 10,
    "d_ff": 80,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "n_positions": N_CTX,
    "decoder_start_token_id": 0,
}
_LONG: Mapping[str, Any] = {"local_radius": 5, "global_block_size": 4}
_SWITCH: Mapping[str, Any] = {
    **dict.fromkeys(("num_layers", "num_decoder_layers"), 4),
    **dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), 2),
    "num_experts": 3,
    "expert_capacity": 6,
}
_T5GEMMA: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "query_pre_attn_scalar": 14,
    "attn_logit_softcapping": 20.0,
    "final_logit_softcapping": 30.0,
}
#: TransformerLens takes stacks of one depth only.
_BART: Mapping[str, Any] = {
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 80),
    "decoder_start_token_id": 2,
}


def _twin(
    name: str,
    model_type: str,
    config: Mapping[str, Any],
    gains: Mapping[str, float] | None = None,
    **more: Any,
) -> Twin:
    return Twin(f"{name}ForConditionalGeneration", model_type, {**config, **more}, gains or {})


#: Biases of what is normalised afterwards must be larger to count.
_Q, _V, _O = "q_proj.bias", "v_proj.bias", "out_proj.bias"
TWINS: Mapping[str, Twin] = {
    "t5": _twin("T5", "t5", _T5),
    # As T5 1.1: gated, and an unembedding of its own.
    "t5-v1.1": _twin("T5", "t5", _T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": _twin("MT5", "mt5", _T5),
    # As the local checkpoints, and as those whose tokens see a sum of every block besides.
    "longt5": _twin("LongT5", "longt5", {**_T5, **_LONG}),
    "longt5-tglobal": _twin(
        "LongT5",
        "longt5",
        {**_T5, **_LONG, "encoder_attention_type": "transient-global"},
        feed_forward_proj="gated-gelu",
    ),
    # Few tokens may go to one expert, so that some go to none.
    "switch": Twin(
        "SwitchTransformersForConditionalGeneration",
        "switch_transformers",
        {**_T5, **_SWITCH},
        {"layer_norm.weight": 2.0},
    ),
    "t5gemma": _twin(
        "T5Gemma",
        "t5gemma",
        {"encoder": _T5GEMMA, "decoder": _T5GEMMA, "decoder_start_token_id": 1},
    ),
    "bart": _twin("Bart", "bart", _BART, {_Q: 4.0, _O: 3.0, "q_proj.weight": 1.3}),
    "mbart": _twin("MBart", "mbart", _BART, scale_embedding=True),
    "m2m100": _twin("M2M100", "m2m_100", _BART),
    "marian": Twin(
        "MarianMTModel",
        "marian",
        {**_BART, "scale_embedding": True, "decoder_start_token_id": 0, "decoder_vocab_size": 113},
        {"shared.weight": 0.25, _Q: 5.0, _V: 3.0, _O: 3.0, "q_proj.weight": 1.3},
    ),
    "pegasus": _twin(
        "Pegasus",
        "pegasus",
        _BART,
        {_Q: 3.0, _O: 3.0, "fc2.bias": 2.0},
        scale_embedding=True,
        decoder_start_token_id=0,
    ),
    "led": _twin(
        "LED",
        "led",
        {**_BART, "attention_window": [8, 4]},
        {
            _Q: 4.0,
            _O: 3.0,
            "q_proj.weight": 1.3,
            "output.bias": 3.0,
            "query.bias": 3.0,
            "query_global.bias": 5.0,
        },
        max_encoder_position_embeddings=N_CTX,
        max_decoder_position_embeddings=N_CTX,
    ),
    # Stacks of two depths, as published.
    "blenderbot": _twin(
        "Blenderbot",
        "blenderbot",
        _BART,
        {"encoder_attn_layer_norm.bias": 2.0},
        encoder_layers=1,
        decoder_layers=3,
        decoder_start_token_id=1,
    ),
}
