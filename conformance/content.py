"""What models without tokens read: an image's pixels, a wave, the frames of a sound.

Numbers of the right shape are drawn from a seed, as a processor would have normalised them. The
tokens of such a prompt are zeros, and say only how many positions there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance import SEEDS
from conformance.errors import ImplementationError
from conformance.prompts import PROMPTS, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.families import Family

_BATCH = 3
#: Longest prompt of a wave, in frames, at least; convolved positions see as many frames as their
#: kernel is wide, and twice so many are past its reach from anywhere.
_LONG = 64
_NO_TEXT = "the model reads no text"
_ONE_SIZE = "an image has one size"
_WHOLE = "the model reads whole waves and images: nothing is padded"


def images(config: Any) -> tuple[tuple[int, ...], int]:
    """The shape of an image or of a spectrogram, and how many positions its patches and the tokens
    before them make (Dosovitskiy et al. 2021; Touvron et al. 2021; Gong et al. 2021)."""
    if config.model_type == "audio-spectrogram-transformer":
        patch = config.patch_size
        down = (config.num_mel_bins - patch) // config.frequency_stride + 1
        across = (config.max_length - patch) // config.time_stride + 1
        return (config.max_length, config.num_mel_bins), down * across + 2
    patches = (config.image_size // config.patch_size) ** 2
    before = 2 if config.model_type == "deit" else 1
    return (config.num_channels, config.image_size, config.image_size), patches + before


def samples(config: Any, frames: int) -> int:
    """How long a wave is of which the convolutions make so many frames (Baevski et al. 2020,
    section 2): the shortest."""
    length = frames
    steps = zip(config.conv_kernel, config.conv_stride, strict=True)
    for kernel, stride in reversed(list(steps)):
        length = (length - 1) * stride + kernel
    return length


def contents(
    fam: Family, config: Any, names: Sequence[str] | None = None
) -> tuple[tuple[Prompt, ...], dict[str, str]]:
    """The prompts of a model that reads no tokens, and for each one left out the reason.

    ``one``, ``two``, ``sixteen`` and ``long`` are waves of so many frames; of an image there is one
    size, and ``sixteen`` is that. ``media`` are three at once.

    Args:
        names: which prompt sets; None for all of :data:`conformance.prompts.PROMPTS`.

    Raises:
        ImplementationError: an unknown name.
    """
    assert fam.reads is not None
    waves = hasattr(config, "conv_stride")
    frames = {"one": 1, "two": 2, "sixteen": 16, "media": 16}
    if waves:
        frames["long"] = max(_LONG, 2 * config.num_conv_pos_embeddings)
    prompts: list[Prompt] = []
    left_out: dict[str, str] = {}
    for name in PROMPTS if names is None else names:
        if name not in PROMPTS:
            raise ImplementationError(
                f"unknown prompt set {name!r}", f"known: {', '.join(PROMPTS)}"
            )
        if name in ("text", "code"):
            left_out[name] = _NO_TEXT
        elif name.startswith("padded"):
            left_out[name] = _WHOLE
        elif not waves and name in ("one", "two", "long"):
            left_out[name] = _ONE_SIZE
        else:
            shape, pos = _wave(config, frames[name]) if waves else images(config)
            rows = _BATCH if name == "media" else 1
            prompts.append(_prompt(name, fam.reads, (rows, *shape), pos))
    return tuple(prompts), left_out


def _wave(config: Any, frames: int) -> tuple[tuple[int, ...], int]:
    return (samples(config, frames),), frames


def _prompt(name: str, argument: str, shape: tuple[int, ...], pos: int) -> Prompt:
    import torch

    generator = torch.Generator().manual_seed(SEEDS["prompts"] + PROMPTS.index(name))
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    nothing = torch.zeros((shape[0], pos), dtype=torch.int64)
    return Prompt(name, nothing, extra={argument: numbers})
