"""Tokenisation: the library's functions of text against the reference's own tokenizer.

TransformerLens prepends a BOS token by default and keeps a tokenizer that does, so what is
compared is the text's own tokens, with exactly one BOS before them where it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from conformance.checks.base import Check, Context, identical
from conformance.experiments.tokenizer import BATCH, SINGLE, TEXTS, long_text
from conformance.records import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conformance.experiments.store import Stored

#: Characters of a string that a message shows.
_SHOWN = 60


class Tokenizer(Check):
    """Ids, strings, single tokens, padding, truncation and special ids."""

    name: ClassVar[str] = "tokenizer"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        stored = context.experiment(self.name)
        if absent := stored.facts.get("absent"):
            self.not_applicable("tokenizer", absent)
            return
        with context.subject.session():
            yield from self._special(context, stored)
            yield from self._tokens(context, stored)
            yield from self._strings(context, stored)
            yield from self._single(context, stored)
            yield from self._padded(context, stored)
            yield from self._truncated(context, stored)

    def _special(self, context: Context, stored: Stored) -> Iterator[Comparison]:
        """Special ids, where the reference has them: the library fills in what is missing."""
        for name, truth in stored.facts["special"].items():
            if truth is not None:
                found = getattr(context.subject.model.tokenizer, f"{name}_token_id", None)
                yield _equal(f"tokenizer.{name}_token_id", "special ids", truth, found)

    def _bos(self, context: Context, stored: Stored) -> int:
        """The id that stands before a text; the library takes EOS where a vocabulary has none."""
        bos = stored.facts["special"]["bos"]
        return int(context.subject.model.tokenizer.bos_token_id if bos is None else bos)

    def _tokens(self, context: Context, stored: Stored) -> Iterator[Comparison]:
        model, bos = context.subject.model, torch.tensor([self._bos(context, stored)])
        default = bool(getattr(model.cfg, "default_prepend_bos", True))
        for name, text in TEXTS.items():
            bare = stored[name].clone()
            whole = torch.cat([bos, bare])
            for how, options, truth in (
                ("without BOS", {"prepend_bos": False}, bare),
                ("with BOS", {"prepend_bos": True}, whole),
                ("by default", {}, whole if default else bare),
            ):
                with self.port(f"to_tokens of {name} {how}", "to_tokens"):
                    found = model.to_tokens(text, **options)
                    yield _same_ids(truth[None], found, site="to_tokens", on=f"{name}, {how}")

    def _strings(self, context: Context, stored: Stored) -> Iterator[Comparison]:
        model, facts = context.subject.model, stored.facts
        for name, text in TEXTS.items():
            tokens, string, pieces = (
                stored[name].clone(),
                facts["strings"][name],
                facts["pieces"][name],
            )
            if not pieces:
                self.not_applicable(
                    f"strings of {name}", "the vocabulary has no token for any of it"
                )
                continue
            with self.port(f"to_string of {name}", "to_string"):
                yield _equal("to_string", name, string, model.to_string(tokens))
                yield _equal(
                    "to_string", f"{name}, a batch", [string], model.to_string(tokens[None])
                )
                round_trip = model.to_string(model.to_tokens(text, prepend_bos=False)[0])
                yield _equal("to_string", f"{name}, there and back", string, round_trip)
            with self.port(f"to_str_tokens of {name}", "to_str_tokens"):
                found = model.to_str_tokens(text, prepend_bos=False)
                yield _equal("to_str_tokens", f"{name}, from text", pieces, list(found))
                found = model.to_str_tokens(tokens)
                yield _equal("to_str_tokens", f"{name}, from tokens", pieces, list(found))

    def _single(self, context: Context, stored: Stored) -> Iterator[Comparison]:
        model = context.subject.model
        for word in SINGLE:
            truth = stored.facts["single"][word]
            on = repr(word)
            if truth is None:
                yield _refuses(model, word)
                continue
            with self.port(f"to_single_token({word!r})", "to_single_token"):
                yield _equal("to_single_token", on, truth, model.to_single_token(word))
            with self.port(f"to_single_str_token({truth})", "to_single_str_token"):
                tokens = torch.tensor([truth])
                string = model.to_string(tokens)
                found = model.to_single_str_token(truth)
                yield _equal("to_single_str_token", on, string, found)

    def _padded(self, context: Context, stored: Stored) -> Iterator[Comparison]:
        """A batch of unequal texts on either side, and what it leaves of the tokenizer."""
        model = context.subject.model
        pad = stored.facts["special"]["pad"]
        pad = model.tokenizer.pad_token_id if pad is None else pad
        bos = torch.tensor([self._bos(context, stored)])
        before = model.tokenizer.padding_side
        for side in ("left", "right"):
            for prepend in (True, False):
                rows = [stored[name].clone() for name in BATCH]
                if prepend:
                    rows = [torch.cat([bos, row]) for row in rows]
                how = f"padded on the {side}, with{'' if prepend else 'out'} BOS"
                with self.port(f"to_tokens of a batch {how}", "to_tokens"):
                    found = model.to_tokens(
                        [TEXTS[name] for name in BATCH], prepend_bos=prepend, padding_side=side
                    )
                    truth = _filled(rows, side, pad)
                    yield _same_ids(truth, found, site="to_tokens", on=f"a batch {how}")
        after = model.tokenizer.padding_side
        yield _equal("tokenizer.padding_side", "after padded batches", before, after)

    def _truncated(self, context: Context, stored: Stored) -> Iterator[Comparison]:
        model, n_ctx = context.subject.model, context.subject.dims.n_ctx
        text, bare = long_text(n_ctx), stored["long"].clone()
        bos = torch.tensor([self._bos(context, stored)])
        whole = torch.cat([bos, bare])
        with self.port("to_tokens of a long text, whole", "to_tokens"):
            found = model.to_tokens(text, prepend_bos=True, truncate=False)
            yield _same_ids(whole[None], found, site="to_tokens", on="a long text, whole")
        limit = int(model.cfg.n_ctx)
        if len(whole) <= limit:
            self.not_applicable("truncation", f"a context of {limit} tokens is not filled")
            return
        with self.port("to_tokens of a long text, truncated", "to_tokens"):
            found = model.to_tokens(text, prepend_bos=True)
            yield _same_ids(whole[None, :limit], found, site="to_tokens", on="a long text, cut")
        with self.port("to_tokens of a long text, truncated", "to_tokens"):
            # A tokenizer that prepends BOS has counted it before it is taken away.
            found = model.to_tokens(text, prepend_bos=False)
            least = bare[None, : max(limit - 1, found.shape[1])]
            on = "a long text, cut, without BOS"
            yield _same_ids(least[:, :limit], found, site="to_tokens", on=on)


def _same_ids(truth: torch.Tensor, found: torch.Tensor, *, site: str, on: str) -> Comparison:
    """Token ids [batch, pos]; another number of them is another text, not another shape."""
    if truth.shape != found.shape:
        return _equal(site, on, truth.tolist(), found.tolist())
    return identical(truth, found, site=site, on=on)


def _filled(rows: list[torch.Tensor], side: str, pad: int) -> torch.Tensor:
    width = max(map(len, rows))
    found = torch.full((len(rows), width), pad, dtype=torch.int64)
    for i, row in enumerate(rows):
        if side == "left":
            found[i, width - len(row) :] = row
        else:
            found[i, : len(row)] = row
    return found


def _refuses(model: Any, word: str) -> Comparison:
    """A word of several tokens is no single token: the library must say so."""
    site, on = "to_single_token", f"{word!r}, several tokens"
    try:
        found = model.to_single_token(word)
    except AssertionError:
        return _equal(site, on, "refused", "refused")
    return _equal(site, on, "refused", found)


def _equal(site: str, on: str, truth: Any, value: Any) -> Comparison:
    """Two values that are no tensors."""
    ok = type(truth) is type(value) and truth == value
    note = "" if ok else f"{str(value)[:_SHOWN]!r}, the reference has {str(truth)[:_SHOWN]!r}"
    return Comparison(
        judgement="exact",
        site=site,
        prompt=on,
        measured=0.0 if ok else 1.0,
        allowed=0.0,
        ok=ok,
        bound="equal" if ok else f"equal; {note}",
        note=note,
    )
