"""Encoders of images and sounds, which read no tokens, as HuggingFace's modelling files lay them
out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.families.base import Family

if TYPE_CHECKING:
    from collections.abc import Callable


def _patches(architecture: str, at: str, **changes: Any) -> Family:
    """Patches and, before them, tokens of which the logits are made.

    Args:
        at: where they are, up to and with the last dot.
    """
    described: dict[str, Any] = {
        "block": f"{at}layers.{{l}}",
        "embed": f"{at}embeddings",
        "towers": (f"{at}embeddings",),
        "ln1": "layernorm_before",
        "attn": "attention",
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "ln2": "layernorm_after",
        "mlp": "mlp",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "ln_final": f"{at}layernorm",
        "unembed": "classifier",
        "rotary": False,
        "causal": False,
        "reads": "pixel_values",
        "pooled": True,
    }
    return Family(architecture, **{**described, **changes})


def _wave(architecture: str, at: str, **changes: Any) -> Callable[[Any], Family]:
    """Frames of a wave; positions are a convolution over them. Blocks of the large models
    (``do_stable_layer_norm``) normalise what they read, others the stream itself."""

    def described(config: Any) -> Family:
        norm = f"{at}encoder.layer_norm"
        before = bool(config.do_stable_layer_norm)
        return Family(
            architecture,
            block=f"{at}encoder.layers.{{l}}",
            embed=f"{at}feature_projection",
            pos_embed=f"{at}encoder.pos_conv_embed",
            embed_ln=None if before else norm,
            ln_final=norm if before else None,
            towers=(
                f"{at}feature_extractor",
                f"{at}feature_projection",
                f"{at}encoder.pos_conv_embed",
                f"{at}masked_spec_embed",
            ),
            post_norm=not before,
            ln1="layer_norm",
            attn="attention",
            q="attention.q_proj",
            k="attention.k_proj",
            v="attention.v_proj",
            o="attention.out_proj",
            ln2="final_layer_norm",
            mlp="feed_forward",
            up="feed_forward.intermediate_dense",
            down="feed_forward.output_dense",
            rotary=False,
            causal=False,
            reads="input_values",
            **changes,
        )

    return described


_SPECTROGRAM = "audio_spectrogram_transformer."
_HEADLESS: dict[str, Any] = {"unembed": None}
_STATES: dict[str, Any] = {**_HEADLESS, "pooled": False, "towers": ("embeddings", "pooler")}

FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    "ViTForImageClassification": _patches("ViTForImageClassification", "vit."),
    "ViTModel": _patches("ViTModel", "", **_STATES),
    "DeiTForImageClassification": _patches("DeiTForImageClassification", "deit."),
    "DeiTModel": _patches("DeiTModel", "", **_STATES),
    "ASTForAudioClassification": _patches(
        "ASTForAudioClassification",
        _SPECTROGRAM,
        towers=(f"{_SPECTROGRAM}embeddings", "classifier.layernorm"),
        unembed="classifier.dense",
        reads="input_values",
    ),
    "HubertForCTC": _wave("HubertForCTC", "hubert."),
    "HubertModel": _wave("HubertModel", "", **_HEADLESS),
    "Wav2Vec2ForCTC": _wave("Wav2Vec2ForCTC", "wav2vec2."),
    "Wav2Vec2Model": _wave("Wav2Vec2Model", "", **_HEADLESS),
}
