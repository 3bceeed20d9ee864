"""Models whose blocks normalise the stream itself: masked encoders, which see in both directions,
and the decoders built like them, as HuggingFace's modelling files lay them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.families.base import Family, like
from conformance.families.decoders import plain

if TYPE_CHECKING:
    from collections.abc import Callable

_BERT = Family(
    architecture="BertForMaskedLM",
    block="bert.encoder.layer.{l}",
    embed="bert.embeddings.word_embeddings",
    pos_embed="bert.embeddings.position_embeddings",
    type_embed="bert.embeddings.token_type_embeddings",
    embed_ln="bert.embeddings.LayerNorm",
    post_norm=True,
    causal=False,
    attn="attention",
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    ln1="attention.output.LayerNorm",
    mlp="intermediate.dense",
    up="intermediate.dense",
    down="output.dense",
    mlp_contribution="output.dense",
    ln2="output.LayerNorm",
    transform="cls.predictions.transform.dense",
    ln_final="cls.predictions.transform.LayerNorm",
    unembed="cls.predictions.decoder",
    unembed_bias="cls.predictions.bias",
    rotary=False,
)


def _bert_decoder(config: Any) -> Family:
    return like(_BERT, "BertLMHeadModel", causal=bool(config.is_decoder))


def _roberta(config: Any) -> Family:
    """Positions are counted from the padding token's row on, and over real tokens only."""
    paths = {
        field: path.replace("bert.", "roberta.", 1)
        for field in ("block", "embed", "pos_embed", "type_embed", "embed_ln")
        if (path := getattr(_BERT, field)) is not None
    }
    return like(
        _BERT,
        "RobertaForMaskedLM",
        **paths,
        pos_offset=config.pad_token_id + 1,
        own_positions=True,
        transform="lm_head.dense",
        ln_final="lm_head.layer_norm",
        unembed="lm_head.decoder",
        unembed_bias="lm_head.bias",
    )


_GPT = like(
    plain("GPT2LMHeadModel"),
    "OpenAIGPTLMHeadModel",
    embed="transformer.tokens_embed",
    pos_embed="transformer.positions_embed",
    post_norm=True,
    ln_final=None,
)

FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    "BertForMaskedLM": _BERT,
    "BertLMHeadModel": _bert_decoder,
    "RobertaForMaskedLM": _roberta,
    "OpenAIGPTLMHeadModel": _GPT,
}
