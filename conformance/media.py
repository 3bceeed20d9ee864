"""A generated image or sound amid text, for models that see or hear; for BERT, two sentences.

What a processor would make of a picture or a wave is normalised numbers of a certain shape; here
they are drawn from a seed. The tokens that stand for it come in the number that the model's own
towers give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance import SEEDS
from conformance.prompts import MEDIA, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.families import Dims

#: Words before and after the image or sound, and frames of a sound.
_BEFORE, _AFTER, _FRAMES = 5, 6, 40
#: An image, or what is made of it: tensors by name, and how many tokens stand for it.
Made = tuple[dict[str, "torch.Tensor"], int]


def _normal(*shape: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(SEEDS["prompts"])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _side(config: Any) -> tuple[int, int]:
    """An image's side in pixels and in patches."""
    vision = config.vision_config
    return vision.image_size, vision.image_size // vision.patch_size


def _image(config: Any, n: int, *before: int) -> Made:
    size, _ = _side(config)
    return {"pixel_values": _normal(*before, 3, size, size)}, n


def _sized(config: Any, n: int, *before: int) -> Made:
    import torch

    size, _ = _side(config)
    made, n = _image(config, n, *before)
    return {**made, "image_sizes": torch.tensor([[size, size]])}, n


def _llava(config: Any) -> Made:
    return _image(config, _side(config)[1] ** 2, 1)


def _tiled(tiles: int) -> Callable[[Any], Made]:
    """The image whole, and again as tiles, whose rows end with a newline."""

    def made(config: Any) -> Made:
        _, side = _side(config)
        return _sized(config, side**2 + side * (side + 1), 1, 1 + tiles)

    return made


def _mistral3(config: Any) -> Made:
    return _sized(config, (_side(config)[1] // config.spatial_merge_size) ** 2, 1)


def _idefics3(config: Any) -> Made:
    return _image(config, _side(config)[1] ** 2 // config.scale_factor**2, 1, 1)


def _llama4(config: Any) -> Made:
    return _image(
        config, int((_side(config)[1] * config.vision_config.pixel_shuffle_ratio) ** 2), 1
    )


def _patches(config: Any) -> Made:
    """Patches in a row, of 4 x 4, with their grid."""
    import torch

    vision, side = config.vision_config, 4
    frames = getattr(vision, "temporal_patch_size", None) or vision.patch_temporal
    width = getattr(vision, "in_channels", 3) * frames * vision.patch_size**2
    grid = torch.tensor([[1, side, side]])
    made = {"pixel_values": _normal(side * side, width), "image_grid_thw": grid}
    merged = getattr(vision, "spatial_merge_size", None) or vision.merge_size
    return made, (side // merged) ** 2


def _placed(merged: bool) -> Callable[[Any], Made]:
    """Patches in a row, each with its column and line; as they are, or those of a token as one."""

    def made(config: Any) -> Made:
        import torch

        vision, side = config.vision_config, 2
        width = vision.patch_size
        if merged:
            width *= vision.pooling_kernel_size
        else:
            side *= vision.pooling_kernel_size
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)
        pixels = _normal(1, side * side, 3 * width**2)
        return {"pixel_values": pixels, "image_position_ids": places[None]}, 4

    return made


def _sound(mask: str, kept: int) -> Callable[[Any], Made]:
    """Mel frames, of which one in ``kept`` becomes a token."""

    def made(config: Any) -> Made:
        import torch

        bins = config.audio_config.num_mel_bins
        frames = 2 * getattr(config.audio_config, "max_source_positions", _FRAMES // 2)
        whole = torch.ones(1, frames, dtype=torch.int64)
        return {"input_features": _normal(1, bins, frames), mask: whole}, frames // kept

    return made


#: Model type -> what an image or sound is to it.
_MADE: Mapping[str, Callable[[Any], Made]] = {
    "gemma3": lambda config: _image(config, config.mm_tokens_per_image, 1),
    "gemma4": _placed(merged=False),
    "gemma4_unified": _placed(merged=True),
    "llava": _llava,
    "llava_next": _tiled(2),
    "llava_onevision": _tiled(1),
    "mistral3": _mistral3,
    "idefics3": _idefics3,
    "llama4": _llama4,
    **dict.fromkeys(
        ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v"), _patches
    ),
    "muse_glimmer": _patches,
    "qwen2_audio": _sound("feature_attention_mask", 4),
    **dict.fromkeys(("audioflamingo3", "musicflamingo"), _sound("input_features_mask", 4)),
    "glmasr": _sound("input_features_mask", 8),
}
#: What tells the tokens of an image from those of text, where a model asks for it.
_TYPES: Mapping[str, str] = {
    "gemma3": "token_type_ids",
    **dict.fromkeys(
        (
            *("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v"),
            *("gemma4", "gemma4_unified"),
        ),
        "mm_token_type_ids",
    ),
}


def generated(config: Any, dims: Dims) -> Prompt | None:
    """A prompt of one image or sound amid random text, or of two sentences that the model tells
    apart; None for models of plain text.

    Args:
        config: the checkpoint's HuggingFace config, whole.
    """
    import torch

    generator = torch.Generator().manual_seed(SEEDS["prompts"])
    text = torch.randint(4, dims.n_ids, (1, _BEFORE + _AFTER), generator=generator)
    if config.model_type == "bert":
        second = (torch.arange(text.shape[1]) >= _BEFORE).long()[None]
        return Prompt(MEDIA, text, extra={"token_type_ids": second})
    make = _MADE.get(config.model_type)
    if make is None:
        return None
    extra, n = make(config)
    names = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index")
    stand_in = next(v for name in names if (v := getattr(config, name, None)) is not None)
    shown = torch.full((1, n), stand_in)
    tokens = torch.cat([text[:, :_BEFORE], shown, text[:, _BEFORE:]], dim=1)
    if kind := _TYPES.get(config.model_type):
        extra[kind] = (tokens == stand_in).long()
    return Prompt(MEDIA, tokens, extra=extra)
