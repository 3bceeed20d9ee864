"""Encoders with a decoder that attends to them, as HuggingFace's modelling files lay them out.

The encoder's layers come first: with three of them, layer 3 is the decoder's first.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.families.base import Family, like
from conformance.families.changes import gated

if TYPE_CHECKING:
    from collections.abc import Callable


def _projections(at: str, names: tuple[str, str, str, str], prefix: str = "") -> dict[str, str]:
    return {f"{prefix}{p}": f"{at}.{n}" for p, n in zip("qkvo", names, strict=True)}


_BIAS = "layer.0.SelfAttention.relative_attention_bias"
_T5 = Family(
    architecture="T5ForConditionalGeneration",
    block="decoder.block.{l}",
    embed="encoder.embed_tokens",
    embed_weight="shared",
    encoder_ln_final="encoder.final_layer_norm",
    ln_final="decoder.final_layer_norm",
    ln1="layer.0.layer_norm",
    attn="layer.0.SelfAttention",
    **_projections("layer.0.SelfAttention", ("q", "k", "v", "o")),  # type: ignore[arg-type]
    ln2="layer.1.layer_norm",
    rotary=False,
    relative=_BIAS,
)


_BLOCKWISE = "the encoder attends within blocks of tokens: no scores of each query and key"
_TWICE = "keys and values are projected twice: of each token and of each block's sum"


def _t5_mlp(config: Any, layer: str) -> dict[str, Any]:
    at = f"{layer}.DenseReluDense"
    if getattr(config, "is_gated_act", False):
        return {"mlp": at, "gate": f"{at}.wi_0", "up": f"{at}.wi_1", "down": f"{at}.wo"}
    return {"mlp": at, "up": f"{at}.wi", "down": f"{at}.wo"}


def _t5(architecture: str) -> Callable[[Any], Family]:
    def described(config: Any) -> Family:
        cross = "layer.1.EncDecAttention"
        layers = []
        for i in range(config.num_layers):
            bias = (_BIAS,) if i == 0 else ()
            own = {"block": f"encoder.block.{i}", "causal": False, "unnamed": bias}
            if local := _LOCAL.get(getattr(config, "encoder_attention_type", "")):
                own |= _attends_locally(f"layer.0.{local}", first=i == 0)
            layers.append(like(_T5, architecture, **own, **_t5_mlp(config, "layer.1")))
        for i in range(config.num_decoder_layers):
            decoder = like(
                _T5,
                architecture,
                block=f"decoder.block.{i}",
                unnamed=(_BIAS,) if i == 0 else (),
                ln_cross="layer.1.layer_norm",
                cross=cross,
                **_projections(cross, ("q", "k", "v", "o"), "cross_"),
                ln2="layer.2.layer_norm",
                **_t5_mlp(config, "layer.2"),
            )
            layers.append(decoder)
        return like(_T5, architecture, encoder=config.num_layers, layers=tuple(layers))

    return described


#: What LongT5 calls its encoder's attention.
_LOCAL = {"local": "LocalSelfAttention", "transient-global": "TransientGlobalSelfAttention"}


def _attends_locally(attn: str, *, first: bool) -> dict[str, Any]:
    """LongT5's encoder (Guo et al. 2022): blocks see themselves and their neighbours, and, where
    attention is "transient-global", a sum of every block."""
    sums = "Transient" in attn
    kinds = {**dict.fromkeys(("attn.scores", "attn.pattern"), _BLOCKWISE)}
    if sums:
        kinds |= dict.fromkeys(("attn.k", "attn.v"), _TWICE)
    biases = [f"{attn}.relative_attention_bias"] if first else []
    biases += [f"{attn}.global_relative_attention_bias"] if first and sums else []
    biases += [f"{attn}.global_input_layer_norm"] if sums else []
    own: dict[str, Any] = _projections(attn, ("q", "k", "v", "o"))
    return {"attn": attn, **own, "relative": None, "unnamed": tuple(biases), "notes": kinds}


def _switch(config: Any) -> Family:
    """T5 with a mixture of experts in every few blocks, of which a token uses one."""
    whole = _t5("SwitchTransformersForConditionalGeneration")(config)
    layers = []
    for i, own in enumerate(whole.layers):
        encoder = i < whole.encoder
        step = config.encoder_sparse_step if encoder else config.decoder_sparse_step
        count = config.num_sparse_encoder_layers if encoder else config.num_sparse_decoder_layers
        at = f"layer.{1 if encoder else 2}.mlp"
        number = i if encoder else i - whole.encoder
        mlp: dict[str, Any] = {"mlp": at, "up": f"{at}.wi", "down": f"{at}.wo"}
        if count and (step == 1 or number % step == 1):
            mlp = {
                "mlp": at,
                "up": None,
                "down": None,
                "router": f"{at}.router.classifier",
                "experts": f"{at}.experts",
                "expert_layout": "modules",
                "expert_names": ("expert_{e}.wi", "expert_{e}.wo"),
            }
        layers.append(dataclasses.replace(own, **mlp))
    return dataclasses.replace(whole, layers=tuple(layers))


def _t5gemma(config: Any) -> Family:
    """Two Gemma 2s: rotary positions, norms before and after; the head is the decoder's table."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    base = Family(
        architecture="T5GemmaForConditionalGeneration",
        block="model.decoder.layers.{l}",
        embed="model.encoder.embed_tokens",
        embed_multiplier=config.encoder.hidden_size**0.5,
        encoder_ln_final="model.encoder.norm",
        ln_final="model.decoder.norm",
        unembed="lm_head.out_proj",
        unembed_weight="model.decoder.embed_tokens",
        ln1="pre_self_attn_layernorm",
        ln1_post="post_self_attn_layernorm",
        attn="self_attn",
        **_projections("self_attn", names),  # type: ignore[arg-type]
        ln2="pre_feedforward_layernorm",
        ln2_post="post_feedforward_layernorm",
        **gated("mlp"),
        norm_offset=True,
    )
    layers = [
        dataclasses.replace(base, block=f"model.encoder.layers.{i}", causal=False)
        for i in range(config.encoder.num_hidden_layers)
    ]
    for i in range(config.decoder.num_hidden_layers):
        own: dict[str, Any] = _projections("cross_attn", names, "cross_")
        decoder = dataclasses.replace(
            base,
            block=f"model.decoder.layers.{i}",
            ln_cross="pre_cross_attn_layernorm",
            ln_cross_post="post_cross_attn_layernorm",
            cross="cross_attn",
            **own,
        )
        layers.append(decoder)
    encoder = config.encoder.num_hidden_layers
    return dataclasses.replace(base, encoder=encoder, layers=tuple(layers))


_BART = Family(
    architecture="BartForConditionalGeneration",
    block="model.decoder.layers.{l}",
    embed="model.encoder.embed_tokens",
    embed_weight="model.shared",
    pos_embed="model.encoder.embed_positions",
    unembed_bias="final_logits_bias",
    ln1="self_attn_layer_norm",
    attn="self_attn",
    **_projections("self_attn", ("q_proj", "k_proj", "v_proj", "out_proj")),  # type: ignore[arg-type]
    ln2="final_layer_norm",
    mlp="fc1",
    up="fc1",
    down="fc2",
    mlp_contribution="fc2",
    ln_final=None,
    rotary=False,
)


def _bart(architecture: str, *, norms: str, rows: int = 0) -> Callable[[Any], Family]:
    """BART and its kin.

    Args:
        norms: of the stream itself (``post``) or before each part (``pre``); the latter also after
            the stacks; ``both``, where the embedding has one too; ``bare``: as ``post``, and the
            embedding has none.
        rows: of the position table before position 0.
    """
    post, embedded = norms in ("post", "bare"), norms in ("post", "both")
    last = not post
    outside = architecture.startswith(("Marian", "Pegasus"))  # of the embedding's module
    counts = architecture.startswith("M2M")  # counts positions itself, from the padding token's on

    def described(config: Any) -> Family:
        scaled = bool(getattr(config, "scale_embedding", False))
        decoders = ["model.decoder.embed_positions"]
        if embedded:
            decoders.append("model.decoder.layernorm_embedding")
        base = like(
            _BART,
            architecture,
            post_norm=post,
            pos_offset=config.pad_token_id + 1 if counts else rows,
            own_positions=counts,
            embed_ln="model.encoder.layernorm_embedding" if embedded else None,
            encoder_ln_final="model.encoder.layer_norm" if last else None,
            ln_final="model.decoder.layer_norm" if last else None,
            towers=tuple(decoders),
            embed_scaled=scaled and not outside,
            embed_multiplier=config.d_model**0.5 if scaled and outside else 1.0,
            unembed_bias=None if counts else _BART.unembed_bias,
        )
        layers = [
            dataclasses.replace(base, block=f"model.encoder.layers.{i}", causal=False)
            for i in range(config.encoder_layers)
        ]
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        for i in range(config.decoder_layers):
            own: dict[str, Any] = _projections("encoder_attn", names, "cross_")
            decoder = dataclasses.replace(
                base,
                block=f"model.decoder.layers.{i}",
                ln_cross="encoder_attn_layer_norm",
                cross="encoder_attn",
                **own,
            )
            layers.append(decoder)
        return dataclasses.replace(base, encoder=config.encoder_layers, layers=tuple(layers))

    return described


_FIRST = "the projections run over positions first, and over padding to whole windows"


def _led(config: Any) -> Family:
    """BART whose encoder sees a window, and the first token everywhere (Longformer)."""
    inside = "self_attn.longformer_self_attn"
    layers = []
    whole = _bart("LEDForConditionalGeneration", norms="post")(config)
    for own in whole.layers:
        block = own.block.replace("model.", "led.", 1)
        if own.cross:
            layers.append(dataclasses.replace(own, block=block, windowed=True))
            continue
        kinds = dict.fromkeys(("attn.scores", "attn.pattern"), _BLOCKWISE)
        kinds |= dict.fromkeys(("attn.q", "attn.k", "attn.v"), _FIRST)
        layers.append(
            dataclasses.replace(
                own,
                block=block,
                windowed=True,
                q=f"{inside}.query",
                k=f"{inside}.key",
                v=f"{inside}.value",
                o="self_attn.output",
                unnamed=tuple(f"{inside}.{n}_global" for n in ("query", "key", "value")),
                notes=kinds,
            )
        )
    fields = ("block", "embed", "embed_weight", "pos_embed", "embed_ln")
    moved: dict[str, Any] = {f: getattr(whole, f).replace("model.", "led.", 1) for f in fields}
    towers = tuple(t.replace("model.", "led.", 1) for t in whole.towers)
    return dataclasses.replace(whole, **moved, towers=towers, layers=tuple(layers), windowed=True)


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    "T5ForConditionalGeneration": _t5("T5ForConditionalGeneration"),
    "MT5ForConditionalGeneration": _t5("MT5ForConditionalGeneration"),
    "LongT5ForConditionalGeneration": _t5("LongT5ForConditionalGeneration"),
    "SwitchTransformersForConditionalGeneration": _switch,
    "T5GemmaForConditionalGeneration": _t5gemma,
    "BartForConditionalGeneration": _bart("BartForConditionalGeneration", norms="post", rows=2),
    "MBartForConditionalGeneration": _bart("MBartForConditionalGeneration", norms="both", rows=2),
    "M2M100ForConditionalGeneration": _bart("M2M100ForConditionalGeneration", norms="pre"),
    "LEDForConditionalGeneration": _led,
    "MarianMTModel": _bart("MarianMTModel", norms="bare"),
    "PegasusForConditionalGeneration": _bart("PegasusForConditionalGeneration", norms="pre"),
    "BlenderbotForConditionalGeneration": _bart("BlenderbotForConditionalGeneration", norms="pre"),
}
