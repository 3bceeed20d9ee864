"""What the reference's tokenizer makes of difficult text. No model is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from conformance.classes import read_config
from conformance.experiments.base import Apparatus, Experiment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

#: Each hard for tokenizers in its own way.
TEXTS: Mapping[str, str] = {
    "words": "The quick brown fox jumps over the lazy dog.",
    "leading space": " leading space",
    "spaces": "two  three   four    trailing   ",
    "lines": "first\nsecond\r\n\n\tthird\n",
    "code": 'def f(x: int) -> str:\n    return f"{x!r:>10}"  # 3.14e-2 != 0x1F\n',
    "digits": "1234567890 1,234,567.89 007",
    "emoji": "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "combining marks": "e\u0301a\u0308o\u0302 \u1e9b\u0323 \u0928\u093f",
    "scripts": "\u4f60\u597d \u0441\u043b\u043e\u0432\u043e \u05e9\u05dc\u05d5\u05dd \u0e17\u0e22",
    "invisible": "a\u00a0b\u200bc\u00add\ufeffe",
    "punctuation": 'Don\'t  stop---"now"... (really?!)',
    "one letter": "a",
}
#: One text of this many repetitions is longer than most contexts.
LONG = "very long "
#: Words as they stand inside a sentence, and one that no vocabulary has.
SINGLE = (" the", " and", " of", "a", " a", "A", ".", "\n", " antidisestablishmentarianism")
#: Texts of unequal length that share a padded batch.
BATCH = ("words", "one letter", "digits")
SPECIAL = ("bos", "eos", "pad", "unk")


def long_text(n_ctx: int) -> str:
    """Longer than the context, in tokens of any tokenizer, up to some thousands."""
    return LONG * min(2 * n_ctx, 4096)


class Tokenizer(Experiment):
    """Token ids of each text, without special tokens: ``{text}`` [pos].

    Facts: ``special`` ids by name; per text what decodes from it, whole (``strings``) and token
    by token (``pieces``); ``single`` ids of words that are one token. ``absent`` if there is none.
    """

    needs_model: ClassVar[bool] = False

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        if on.tokenizer is None:
            yield "absent", torch.zeros(1, dtype=torch.int64)
            return
        for name, text in _texts(on).items():
            yield name, torch.tensor(_ids(on.tokenizer, text), dtype=torch.int64)

    def facts(self, on: Apparatus) -> dict[str, Any]:
        tokenizer = on.tokenizer
        if tokenizer is None:
            return {"absent": "the checkpoint has no tokenizer"}
        ids = {name: _ids(tokenizer, text) for name, text in _texts(on).items()}
        return {
            "special": {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL},
            "padding_side": tokenizer.padding_side,
            "strings": {name: _decoded(tokenizer, found) for name, found in ids.items()},
            "pieces": {
                name: [_decoded(tokenizer, [i]) for i in found]
                for name, found in ids.items()
                if name in TEXTS
            },
            "single": {
                word: found[0] if len(found := _ids(tokenizer, word)) == 1 else None
                for word in SINGLE
            },
        }


def _texts(on: Apparatus) -> dict[str, str]:

    config = read_config(on.checkpoint).get_text_config()
    return {**TEXTS, "long": long_text(_context(config))}


def _context(config: Any) -> int:
    from conformance.families import dims

    return dims(config).n_ctx


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


EXPERIMENT = Tokenizer()
