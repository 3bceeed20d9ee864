"""Decoders that see images or hear sounds: a known decoder under another path, and beside it the
towers that make embeddings of pixels and waves, as HuggingFace's modelling files lay them out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from conformance.families import decoders, dense, experts, per_layer, recurrent
from conformance.families.base import Family, like

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TEXT: Mapping[str, Family | Callable[[Any], Family]] = {
    **decoders.FAMILIES,
    **dense.FAMILIES,
    **experts.FAMILIES,
    **per_layer.FAMILIES,
    **recurrent.FAMILIES,
}
_VISION = ("model.vision_tower", "model.multi_modal_projector")
_QWEN_VISION = ("model.visual",)
_AUDIO = ("model.audio_tower", "model.multi_modal_projector")


def _under(
    text: str, towers: tuple[str, ...], *, at: str = "model.language_model", **changes: Any
) -> Callable[[Any], Family]:
    """The description of a text model whose ``model`` lies at another path.

    Args:
        text: the architecture of the text model, with its head.
        towers: modules of the other modalities.
        at: where the text model without its head lies.
        changes: fields in which the text model differs from the architecture named.
    """

    def moved(fam: Family) -> Family:
        paths: dict[str, Any] = {
            field: f"{at}.{path.removeprefix('model.')}"
            for field in ("block", "embed", "embed_ln", "ln_final")
            if (path := getattr(fam, field)) is not None
        }
        own = tuple(f"{at}.{path.removeprefix('model.')}" for path in fam.towers)
        return dataclasses.replace(fam, **paths, towers=(*own, *towers), **changes)

    def described(config: Any) -> Family:
        entry = _TEXT[text]
        fam = entry(config.get_text_config()) if callable(entry) else entry
        layers = tuple(moved(own) for own in fam.layers)
        return dataclasses.replace(moved(fam), layers=layers)

    return described


_BY_SUFFIX: Mapping[str, Callable[[Any], Family]] = {
    "Gemma3": _under("Gemma3ForCausalLM", _VISION),
    "Gemma4": _under("Gemma4ForCausalLM", ("model.vision_tower", "model.embed_vision")),
    "Gemma4Unified": _under("Gemma4ForCausalLM", ("model.vision_embedder", "model.embed_vision")),
    "Llava": _under("LlamaForCausalLM", _VISION),
    "LlavaNext": _under("LlamaForCausalLM", (*_VISION, "model.image_newline")),
    "LlavaOnevision": _under("Qwen2ForCausalLM", (*_VISION, "model.image_newline")),
    "Mistral3": _under("MistralForCausalLM", _VISION),
    "Idefics3": _under(
        "LlamaForCausalLM", ("model.vision_model", "model.connector"), at="model.text_model"
    ),
    "Llama4": _under(
        "Llama4ForCausalLM",
        ("vision_model", "multi_modal_projector"),
        at="language_model.model",
        unembed="language_model.lm_head",
    ),
    "Qwen2_5_VL": _under("Qwen2ForCausalLM", _QWEN_VISION),
    "Qwen3VL": _under("Qwen3ForCausalLM", _QWEN_VISION),
    "Qwen3VLMoe": _under("Qwen3MoeForCausalLM", _QWEN_VISION),
    "Qwen3_5": _under("Qwen3_5ForCausalLM", _QWEN_VISION),
    "Qwen3_5Moe": _under("Qwen3_5MoeForCausalLM", _QWEN_VISION),
    "Glm4v": _under("Glm4ForCausalLM", _QWEN_VISION),
    "Qwen2Audio": _under("Qwen2ForCausalLM", _AUDIO),
    "AudioFlamingo3": _under("Qwen2ForCausalLM", _AUDIO),
    "MusicFlamingo": _under("Qwen2ForCausalLM", _AUDIO),
    "GlmAsr": _under("LlamaForCausalLM", _AUDIO),
    "Emu3": _under("LlamaForCausalLM", ("model.vqmodel",), at="model.text_model"),
}


def _named(name: str, described: Callable[[Any], Family]) -> Callable[[Any], Family]:
    architecture = f"{name}ForConditionalGeneration"

    def renamed(config: Any) -> Family:
        fam = described(config)
        layers = tuple(like(own, architecture) for own in fam.layers)
        return like(fam, architecture, layers=layers)

    return renamed


FAMILIES: dict[str, Family | Callable[[Any], Family]] = {
    f"{name}ForConditionalGeneration": _named(name, described)
    for name, described in _BY_SUFFIX.items()
}
