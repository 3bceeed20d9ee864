"""The inputs both sides see: real text, random ids, one token, a full context, padded batches.

A prompt is token ids and, where sequences of unequal length share a batch, a mask. One-token
prompts cannot see rotary or attention scale at all, short ones cannot see a sliding window:
hence the lengths (``docs/verdicts.md``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from conformance import SEEDS
from conformance.errors import ImplementationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from conformance.families import Dims

#: Opening words of works in the public domain, in several scripts, and lines with code and
#: digits: tokenizers treat each of them differently.
TEXTS: Mapping[str, str] = {
    "text": (
        "Call me Ishmael. Some years ago, never mind how long precisely, having little or no "
        "money in my purse, I thought I would sail about a little. \u4e09\u5341\u8f3b\u5171"
        "\u4e00\u8f42 \u0412\u0441\u0435 \u0441\u0447\u0430\u0441\u0442\u043b\u0438\u0432"
        "\u044b\u0435 \u0441\u0435\u043c\u044c\u0438 \u03bc\u1fc6\u03bd\u03b9\u03bd "
        "\u1f04\u03b5\u03b9\u03b4\u03b5"
    ),
    "code": "def f(x):\n    return 3 * x + 1  # 27 -> 82, 97 -> 292\nprint(f(1024), 3.14159)\n",
}

Kind = Literal["text", "ids", "padded"]

#: Names of all prompt sets, in the order they run; short ones first, so that a fault shows early.
PROMPTS: tuple[str, ...] = (
    "sixteen",
    "one",
    "two",
    "text",
    "code",
    "padded_right",
    "padded_left",
    "long",
    "media",
)
#: The one with an image or a sound, for models that see or hear.
MEDIA = PROMPTS[-1]

#: Longest text prompt, in tokens: a twin's character tokenizer makes many.
_TEXT_LIMIT = 64
_PADDED_LENGTHS = (5, 9, 14)
#: Tokens of the longest prompt, at least, where the context has so many.
LONG = 512


@dataclass(frozen=True)
class Prompt:
    """Token ids [batch, pos] (int64) and a mask [batch, pos] (1 real, 0 padding) or None.

    ``extra`` has what else a model is given, by the names of its arguments: an image, a sound.
    ``decoder`` are the tokens [batch, pos of the decoder] that a decoder is given where an encoder
    is given ``tokens``; None for these one place late.
    """

    name: str
    tokens: torch.Tensor
    mask: torch.Tensor | None = None
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    decoder: torch.Tensor | None = None

    def given(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """``extra``, its real numbers in the dtype of the model."""
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.extra.items()}

    @property
    def valid(self) -> torch.Tensor:
        """Bool [batch, pos]: positions that hold a real token."""
        import torch

        if self.mask is None:
            return torch.ones_like(self.tokens, dtype=torch.bool)
        return self.mask.bool()


def long_length(dims: Dims) -> int:
    """At least 512 tokens and past every sliding window, within the context.

    Twins have contexts below 512; theirs is used whole.
    """
    window = max((w for w in dims.windows if w is not None), default=0)
    return min(dims.n_ctx, max(LONG, window + window // 8))


def build(
    dims: Dims,
    tokenizer: Any | None,
    names: tuple[str, ...] | None = None,
    media: Prompt | None = None,
) -> tuple[tuple[Prompt, ...], dict[str, str]]:
    """The prompts of one model, and for each one left out the reason.

    Args:
        dims: the model's sizes.
        tokenizer: the reference's tokenizer, or None: then prompts of real text are left out.
        names: which prompt sets; None for all of :data:`PROMPTS`.
        media: the one with an image or a sound, where the model takes any.

    Raises:
        ImplementationError: an unknown name.
    """
    wanted = names if names is not None else PROMPTS
    unknown = [n for n in wanted if n not in PROMPTS]
    if unknown:
        raise ImplementationError(
            f"unknown prompt set {unknown[0]!r}", f"known: {', '.join(PROMPTS)}"
        )
    prompts: list[Prompt] = []
    left_out: dict[str, str] = {}
    for name in wanted:
        if name == MEDIA:
            prompts += [media] if media is not None else []
        elif name in TEXTS:
            if tokenizer is None:
                left_out[name] = "the checkpoint has no tokenizer; random ids stand in"
            else:
                prompts.append(_text(name, tokenizer, dims))
        elif name.startswith("padded"):
            prompts.append(_padded(name, dims))
        else:
            length = {"one": 1, "two": 2, "sixteen": 16, "long": long_length(dims)}[name]
            prompts.append(Prompt(name, _random(name, (1, min(length, dims.n_ctx)), dims)))
    return tuple(prompts), left_out


def _random(name: str, shape: tuple[int, int], dims: Dims) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(SEEDS["prompts"] + PROMPTS.index(name))
    # The first ids are special tokens in every vocabulary we know of.
    return torch.randint(min(4, dims.n_ids - 1), dims.n_ids, shape, generator=generator)


def _text(name: str, tokenizer: Any, dims: Dims) -> Prompt:
    import torch

    ids = tokenizer(TEXTS[name])["input_ids"][: min(_TEXT_LIMIT, dims.n_ctx)]
    return Prompt(name, torch.tensor([ids], dtype=torch.int64))


def _padded(name: str, dims: Dims) -> Prompt:
    import torch

    width = min(max(_PADDED_LENGTHS), dims.n_ctx)
    tokens = _random(name, (len(_PADDED_LENGTHS), width), dims)
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(min(n, width) for n in _PADDED_LENGTHS):
        where = slice(0, length) if name.endswith("right") else slice(width - length, width)
        mask[row, where] = 1
    return Prompt(name, tokens.masked_fill(~mask.bool(), dims.pad), mask)
