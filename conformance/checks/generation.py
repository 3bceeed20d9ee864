"""Generation: tokens, logits and caches of step-by-step decoding against the reference's.

Tokens compare exactly. A step at which the reference's two largest logits are nearer to each
other than its bound allows is a tie: what follows it is not compared, and that is reported.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from conformance import bounds
from conformance.checks.base import Check, Context, agree, identical, same, structure
from conformance.checks.decoders import decoder_of
from conformance.experiments.batching import padded
from conformance.experiments.generation import (
    ALONE,
    AT_ONCE,
    CONFIGURED,
    OWN,
    RULED,
    SEEN,
    SINGLE,
    SINGLY,
    TOGETHER,
    configured,
    fewer,
    keeping_heads,
    kept,
    once,
    prompts,
    ruled,
    side,
    steered,
    steering,
    steps,
)
from conformance.experiments.rows import project
from conformance.implementations.base import asked
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conformance.checks.decoders import Decoder
    from conformance.experiments.store import Stored
    from conformance.implementations.lens_model import LensModel
    from conformance.records import Comparison

#: Tokens generated without a cache where an edit is active, the model is large, or two stacks.
FEW = 8
#: What is generated as a generation config says, and with a token that sees all: the library's
#: doing, not the forward pass's.
_CONFIGURED, _SEEN = "logits.configured", "logits.seen_by_all"
#: Tokens sampled, three times.
SAMPLED = 4
_SEED = 0


@dataclass(frozen=True)
class Made:
    """Tokens [batch, pos], the prompt first, or those of the decoder; and logits
    [batch, step, d_vocab] of each step."""

    tokens: torch.Tensor
    logits: torch.Tensor

    def row(self, row: int, start: int) -> Made:
        """One row, without its padding."""
        return Made(self.tokens[row : row + 1, start:], self.logits[row : row + 1])


class Generation(Check):
    """Decoding with and without a cache, in a batch, steered, sampled."""

    name: ClassVar[str] = "generation"
    runs: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        #: Whether generation without an edit is right, with a cache and without: if so, a wrong
        #: one is the edit's.
        self._right = {True: True, False: True}
        #: At which tokens are sampled: so that they are spread over many, however large the logits.
        self._temperature = 1.0

    def exact(self, context: Context) -> Iterable[Comparison]:
        self.metrics.update(context.scope.said())
        if reason := _declined(context):
            self.not_applicable("generation", reason)
            return
        stored = context.experiment(self.name)
        subject = context.subject
        found = prompts(subject.dims, context.scope)
        count = _at_most(steps(subject.family, subject.dims, context.scope), context)
        if stored.facts["disagrees"]:
            self.metrics["reference_disagrees_with_itself"] = stored.facts["disagrees"]
        alone = found[ALONE][None]
        yield from self._step_by_step(context, stored)
        large = context.scope.large or subject.family.encoder
        few = min(count, FEW) if large else count
        for cached, n in ((True, count), (False, few)):
            how = f"{n} tokens with{'' if cached else 'out'} a cache"
            if cached and ALONE in stored.facts["disagrees"]:
                self.not_applicable(how, stored.facts["disagrees"][ALONE])
                continue
            made = self._generate(context, how, alone, n, cached)
            if made is None:
                self._right[cached] = False
                continue
            self._temperature = float(made.logits.std())
            way = ALONE if cached else None
            for comparison in _greedy(self.metrics, stored, ALONE, made, how, made_as=way):
                self._right[cached] = self._right[cached] and comparison.ok
                yield comparison
        together = _at_most(fewer(subject.family, subject.dims, context.scope), context)
        yield from self._batch(context, stored, found, together)
        for name, site in steered(subject.family, subject.dims).items():
            yield from self._steered(context, stored, alone, name, site)
        if subject.family.encoder:
            yield from self._configured(context, stored, alone)
        if subject.family.windowed:
            yield from self._seen_by_all(context, stored, alone)
        if ALONE in stored.facts["disagrees"]:
            self.not_applicable("sampled tokens", stored.facts["disagrees"][ALONE])
        else:
            yield from self._sampled(context, alone, min(count, SAMPLED))

    def _generate(
        self,
        context: Context,
        doing: str,
        tokens: torch.Tensor,
        count: int,
        cached: bool,
        mask: torch.Tensor | None = None,
        sample: bool = False,
        **given: Any,
    ) -> Made | None:
        """What the library's own ``generate`` returns; None if it raised.

        Args:
            given: further options of ``generate``.
        """
        subject = context.subject
        options: dict[str, Any] = {
            "max_new_tokens": count,
            "do_sample": sample,
            "stop_at_eos": False,
            "use_past_kv_cache": cached,
            "prepend_bos": False,
            "return_type": "tokens",
            "output_logits": True,
            "verbose": False,
            **given,
        }
        if sample:
            options["temperature"] = self._temperature
        if mask is not None and subject.kind == "TransformerBridge":
            options["attention_mask"] = mask
        elif mask is not None:
            options["padding_side"] = "left"
        with (
            self.port(f"generating {doing}", "logits"),
            subject.session(),
            _asked_alone(subject, given),
        ):
            result = subject.model.generate(tokens, **options)
            if hasattr(result, "sequences"):
                return Made(result.sequences, torch.stack(list(result.logits), dim=1))
            note = f"generating {doing} returned a bare {type(result).__name__}, not the logits too"
            self.comparisons.append(structure("logits", note))
        return None

    def _batch(
        self, context: Context, stored: Stored, found: dict[str, torch.Tensor], count: int
    ) -> Iterator[Comparison]:
        what, subject = TOGETHER, context.subject
        if "batch" in stored.facts["disagrees"]:
            self.not_applicable(what, stored.facts["disagrees"]["batch"])
            return
        if not getattr(
            getattr(subject.model, "adapter", None), "supports_batched_generation", True
        ):
            self.not_applicable(what, "the adapter does not support batched generation")
            return
        rows = list(found.values())
        prompt = padded(rows, side(subject.family), subject.dims.pad)
        assert prompt.mask is not None
        if subject.kind != "TransformerBridge" and not self._hooked_pads(context):
            return
        made = self._generate(context, what, prompt.tokens, count, True, mask=prompt.mask)
        if made is None:
            return
        width = 0 if subject.family.encoder else prompt.tokens.shape[1]
        for i, (name, row) in enumerate(found.items()):
            own = made.row(i, max(0, width - len(row)))
            yield from _greedy(self.metrics, stored, name, own, f"in {what}", made_as="batch")

    def _hooked_pads(self, context: Context) -> bool:
        """HookedTransformer reads the padding off the tokens: they must be padded with its id."""
        tokenizer = context.subject.model.tokenizer
        if tokenizer is not None and tokenizer.pad_token_id == 0:
            return True
        self.not_applicable(
            TOGETHER,
            "HookedTransformer tells padding from tokens by its tokenizer's padding id alone",
        )
        return False

    def _steered(
        self, context: Context, stored: Stored, tokens: torch.Tensor, sequence: str, site: str
    ) -> Iterator[Comparison]:
        """A vector added to the residual stream while tokens are generated."""
        subject = context.subject
        change = steering(subject.dims, stored.facts["sizes"][sequence])
        count = _at_most(fewer(subject.family, subject.dims, context.scope), context)
        name = subject.editable().get(site)
        if name is None:
            self.not_applicable("steering", f"no hook of the library can edit {site}")
            return

        def steer(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return change(value)

        for cached, n in ((True, count), (False, min(count, FEW))):
            how = f"{n} tokens with{'' if cached else 'out'} a cache, a vector added at {site}"
            if cached and sequence in stored.facts["disagrees"]:
                self.not_applicable(how, stored.facts["disagrees"][sequence])
                continue
            found: Made | None = None
            with contextlib.ExitStack() as stack:
                with self.port(f"entering hooks({name})", site):
                    stack.enter_context(subject.model.hooks(fwd_hooks=[(name, steer)]))
                found = self._generate(context, how, tokens, n, cached)
            if found is not None:
                at = site if self._right[cached] else "logits"
                way = sequence if cached else None
                yield from _greedy(self.metrics, stored, sequence, found, how, at, made_as=way)

    def _configured(
        self, context: Context, stored: Stored, tokens: torch.Tensor
    ) -> Iterator[Comparison]:
        """What a generation config asks for, which ``generate`` follows for a decoder that attends
        to an encoder: first and last tokens, a shortest length, no n-gram twice, the end."""
        model = context.subject.model.original_model
        until_eos = {"stop_at_eos": True, "eos_token_id": model.generation_config.eos_token_id}
        how = "as the generation config says"
        if OWN in stored.facts["disagrees"]:
            self.not_applicable(how, stored.facts["disagrees"][OWN])
        elif made := self._generate(context, how, tokens, CONFIGURED, True, **until_eos):
            yield from _greedy(self.metrics, stored, OWN, made, how, _CONFIGURED, every=True)
        how = "as a generation config with rules says"
        with configured(model, ruled(model.generation_config)):
            # The first token is forced: the library counts it to what a decoder is given.
            made = self._generate(context, how, tokens, CONFIGURED - 1, True, **until_eos)
        if made is not None:
            truth = stored[f"{RULED}/tokens"]
            yield identical(truth, made.tokens[0], site=_CONFIGURED, on=f"{ALONE}, {how}")

    def _seen_by_all(
        self, context: Context, stored: Stored, tokens: torch.Tensor
    ) -> Iterator[Comparison]:
        """The first token of the encoder sees, and is seen by, all."""
        how = "the first token seen by all"
        if SEEN in stored.facts["disagrees"]:
            self.not_applicable(how, stored.facts["disagrees"][SEEN])
            return
        seen: dict[str, Any] = {**asked(context.subject.family, Prompt(SEEN, tokens))}
        if made := self._generate(context, how, tokens, CONFIGURED, True, **seen):
            yield from _greedy(self.metrics, stored, SEEN, made, how, _SEEN)

    def _sampled(self, context: Context, tokens: torch.Tensor, count: int) -> Iterator[Comparison]:
        """The same seed gives the same tokens, with a cache and without."""
        found: list[torch.Tensor] = []
        for cached in (True, True, False):
            how = f"{count} sampled tokens"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                sampled = self._generate(context, how, tokens, count, cached, sample=True)
            if sampled is None:
                return
            found.append(sampled.tokens)
        on = f"{count} tokens sampled with seed {_SEED}"
        yield identical(found[0], found[1], site="logits", on=f"{on}, again")
        yield identical(found[0], found[2], site="logits", on=f"{on}, without a cache")

    def _step_by_step(self, context: Context, stored: Stored) -> Iterator[Comparison]:
        """A prompt, then single tokens, then the rest at once: logits as of one full pass."""
        adapter = getattr(context.subject.model, "adapter", None)
        if not getattr(adapter, "supports_kv_cache", True):
            reason = f"{type(adapter).__name__} keeps no cache: every token is a pass over all"
            self.not_applicable("decoding step by step", reason)
            return
        whole = stored[f"{ALONE}/tokens"].clone()[None]
        fam = context.subject.family
        tokens = prompts(context.subject.dims, context.scope)[ALONE]
        start = 1 if fam.encoder else len(tokens)
        single = start + SINGLE
        cuts = [0, start, *range(start + 1, single + 1), whole.shape[1]]
        decoder = decoder_of(context.subject, tokens[None])
        logits: list[torch.Tensor] = []
        for left, right in itertools.pairwise(cuts):
            if right <= left:
                continue
            made: torch.Tensor | None = None
            with (
                self.port(f"decoding positions {left} to {right}", "logits"),
                context.subject.session(),
            ):
                made = decoder.step(whole[:, left:right])
            if made is None:
                return
            logits.append(made)
            if not decoder.kept and SINGLY in stored.facts["disagrees"]:
                self.not_applicable("decoding step by step", stored.facts["disagrees"][SINGLY])
                return
            if not decoder.kept:
                yield structure("logits", "decoding step by step: no cache came back", ALONE)
                return
            if right == kept(fam, tokens):
                yield from self._cache(context, stored, decoder)
        parts = {"prompt": (0, start), SINGLY: (start, single), AT_ONCE: (single, whole.shape[1])}
        found = project(torch.cat(logits, dim=1))[0]
        truth = stored[f"{ALONE}/logits"]
        for what, (left, right) in parts.items():
            if what in stored.facts["disagrees"]:
                self.not_applicable(f"decoding {what}", stored.facts["disagrees"][what])
                continue
            yield same(
                truth[left:right],
                found[left:right],
                _spread(stored, ALONE, what),
                site="logits",
                on=f"{ALONE}, decoded step by step: {what}",
            )

    def _cache(self, context: Context, stored: Stored, decoder: Decoder) -> Iterator[Comparison]:
        """Keys and values after the prompt, or after some tokens of a decoder, by layer."""
        fam = context.subject.family
        layers = keeping_heads(fam, context.scope)
        if len(layers) < sum(i >= fam.encoder for i in context.scope.layers):
            reason = "some layers keep no keys and values of heads"
            self.not_applicable("keys and values of every layer", reason)
        for layer in layers:
            rotary = fam.of(layer).rotary
            at = f"blocks.{layer}.attn."
            try:
                held = decoder.held(layer)
            except (AttributeError, TypeError) as error:
                yield structure(at + "k", f"reading the cache raised {error}", ALONE)
                continue
            if held is None:
                yield structure(at + "k", "the cache holds nothing of this layer", ALONE)
                continue
            key = f"{decoder.keys}/{layer}"
            on = f"the cache after {ALONE}"
            site = at + ("rot_k" if rotary and decoder.keys == "keys" else "k")
            keys, values = (once(t, context.subject.dims.of(layer)) for t in held)
            yield agree(stored, key, keys, site=site, on=on, row_dims=2)
            yield agree(stored, f"values/{layer}", values, site=at + "v", on=on, row_dims=2)
            if fam.encoder:
                yield from _crossed(context, stored, decoder, layer, on)


def _crossed(
    context: Context, stored: Stored, decoder: Decoder, layer: int, on: str
) -> Iterator[Comparison]:
    """Keys and values of a decoder's attention to its encoder."""
    at = f"blocks.{layer}.cross_attn."
    held = decoder.crossed(layer)
    if held is None:
        yield structure(at + "k", "the cache holds nothing of this layer", ALONE)
        return
    for what, kind, own in zip(("keys", "values"), "kv", held, strict=True):
        shown = once(own, context.subject.dims.of(layer))
        key = f"cross_{what}/{layer}"
        yield agree(stored, key, shown, site=at + kind, on=on, row_dims=2)


def _greedy(
    metrics: dict[str, Any],
    stored: Stored,
    name: str,
    made: Made,
    how: str,
    site: str = "logits",
    *,
    every: bool = False,
    made_as: str | None = None,
) -> Iterator[Comparison]:
    """Tokens, and the logits that they were taken from, up to a tie.

    Args:
        made_as: as for :func:`_spread`.
        every: no token of the reference's may be missing: it stopped by itself.
    """
    on = f"{name}, {how}"
    tokens, logits = made.tokens[0], made.logits[0]
    truth = stored[f"{name}/tokens"]
    truth = truth if every else truth[: len(tokens)]
    start = len(tokens) - len(logits)
    if truth.shape != tokens.shape:
        yield structure(site, f"{len(tokens)} tokens, expected {len(truth)}", on)
        return
    spread = _spread(stored, name, made_as)
    allowed = bounds.same_function(spread)[0]
    apart = (truth != tokens).nonzero()
    # The logits of a step saw the tokens before it alone: those of the first wrong one count.
    seen = min([*apart[:1, 0].tolist(), len(tokens) - 1])
    if len(apart) > 0:
        margin = float(stored[f"{name}/margins"][seen - 1])
        if margin <= 2 * allowed:  # either logit may move by the bound
            metrics.setdefault("ties", {})[on] = [seen, margin]
            truth, tokens = truth[:seen], tokens[:seen]
    yield identical(truth, tokens, site=site, on=on, note="tokens")
    whole = stored[f"{name}/logits"][start - 1 : seen]
    if len(whole) > 0:
        shown = project(logits[None])[0][: len(whole)]
        finite = bool(logits[: len(whole)].isfinite().all())
        note = "" if finite else "logits that are not finite"
        yield same(whole, shown, spread, site=site, on=on, note=note)


def _spread(stored: Stored, name: str, made_as: str | None) -> float:
    """How far roundoff moves the logits of a sequence: when weights move, and when the reference
    itself makes them another way.

    Args:
        made_as: that way (``apart`` of the experiment), if there is one.
    """
    other = 0.0 if made_as is None else stored.facts["apart"].get(made_as, 0.0)
    return max(stored.spread(f"{name}/logits"), float(other))


@contextlib.contextmanager
def _asked_alone(subject: LensModel, given: dict[str, Any]) -> Iterator[None]:
    """Generation of a decoder that attends to an encoder, as it is asked: nothing that a generation
    config adds, unless the end is asked for."""
    if not subject.family.encoder or given.get("stop_at_eos"):
        yield
        return
    import transformers

    with configured(subject.model.original_model, transformers.GenerationConfig()):
        yield


def _at_most(count: int, context: Context) -> int:
    return count if context.generated is None else min(count, context.generated)


def _declined(context: Context) -> str | None:
    if not context.reference.family.causal:
        return "a masked encoder generates nothing"
    adapter = getattr(context.subject.model, "adapter", None)
    if not getattr(adapter, "supports_generation", True):
        return f"{type(adapter).__name__} does not support it"
    return None
