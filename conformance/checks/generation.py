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
from conformance.checks.base import Check, Context, agree, identical, structure
from conformance.checks.decoders import decoder_of
from conformance.experiments.batching import padded
from conformance.experiments.generation import (
    ALONE,
    AT_ONCE,
    SINGLE,
    SINGLY,
    STEERED,
    fewer,
    keeping_heads,
    once,
    prompts,
    steering,
    steps,
)
from conformance.experiments.rows import project

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conformance.checks.decoders import Decoder
    from conformance.experiments.store import Stored
    from conformance.records import Comparison

#: Tokens generated without a cache where an edit is active or the model is large.
FEW = 8
#: Tokens sampled, three times.
SAMPLED = 4
_SEED = 0


@dataclass(frozen=True)
class Made:
    """Tokens [batch, pos], the prompt first; and logits [batch, step, d_vocab] of each step."""

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
        count = _at_most(steps(subject.dims, context.scope), context)
        if stored.facts["disagrees"]:
            self.metrics["reference_disagrees_with_itself"] = stored.facts["disagrees"]
        alone = found[ALONE][None]
        yield from self._step_by_step(context, stored)
        few = min(count, FEW) if context.scope.large else count
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
            for comparison in _greedy(self.metrics, stored, ALONE, made, how):
                self._right[cached] = self._right[cached] and comparison.ok
                yield comparison
        together = _at_most(fewer(subject.dims, context.scope), context)
        yield from self._batch(context, stored, found, together)
        yield from self._steered(context, stored, alone)
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
    ) -> Made | None:
        """What the library's own ``generate`` returns; None if it raised."""
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
        }
        if sample:
            options["temperature"] = self._temperature
        if mask is not None and subject.kind == "TransformerBridge":
            options["attention_mask"] = mask
        elif mask is not None:
            options["padding_side"] = "left"
        with self.port(f"generating {doing}", "logits"), subject.session():
            result = subject.model.generate(tokens, **options)
            if hasattr(result, "sequences"):
                return Made(result.sequences, torch.stack(list(result.logits), dim=1))
            note = f"generating {doing} returned a bare {type(result).__name__}, not the logits too"
            self.comparisons.append(structure("logits", note))
        return None

    def _batch(
        self, context: Context, stored: Stored, found: dict[str, torch.Tensor], count: int
    ) -> Iterator[Comparison]:
        what = "a batch padded on the left"
        subject = context.subject
        if "batch" in stored.facts["disagrees"]:
            self.not_applicable(what, stored.facts["disagrees"]["batch"])
            return
        if not getattr(
            getattr(subject.model, "adapter", None), "supports_batched_generation", True
        ):
            self.not_applicable(what, "the adapter does not support batched generation")
            return
        rows = list(found.values())
        prompt = padded(rows, "left")
        assert prompt.mask is not None
        if subject.kind != "TransformerBridge" and not self._hooked_pads(context):
            return
        made = self._generate(context, what, prompt.tokens, count, True, mask=prompt.mask)
        if made is None:
            return
        width = prompt.tokens.shape[1]
        for i, (name, row) in enumerate(found.items()):
            own = made.row(i, width - len(row))
            yield from _greedy(self.metrics, stored, name, own, f"in {what}")

    def _hooked_pads(self, context: Context) -> bool:
        """HookedTransformer reads the padding off the tokens: they must be padded with its id."""
        tokenizer = context.subject.model.tokenizer
        if tokenizer is not None and tokenizer.pad_token_id == 0:
            return True
        self.not_applicable(
            "a batch padded on the left",
            "HookedTransformer tells padding from tokens by its tokenizer's padding id alone",
        )
        return False

    def _steered(
        self, context: Context, stored: Stored, tokens: torch.Tensor
    ) -> Iterator[Comparison]:
        """A vector added to the residual stream while tokens are generated."""
        subject = context.subject
        site, change = steering(subject.dims, stored.facts["size"])
        count = _at_most(len(stored[f"{STEERED}/tokens"]) - tokens.shape[1], context)
        name = subject.editable().get(site)
        if name is None:
            self.not_applicable("steering", f"no hook of the library can edit {site}")
            return

        def steer(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return change(value)

        for cached, n in ((True, count), (False, min(count, FEW))):
            how = f"{n} tokens with{'' if cached else 'out'} a cache, a vector added at {site}"
            if cached and STEERED in stored.facts["disagrees"]:
                self.not_applicable(how, stored.facts["disagrees"][STEERED])
                continue
            found: Made | None = None
            with contextlib.ExitStack() as stack:
                with self.port(f"entering hooks({name})", site):
                    stack.enter_context(subject.model.hooks(fwd_hooks=[(name, steer)]))
                found = self._generate(context, how, tokens, n, cached)
            if found is not None:
                at = site if self._right[cached] else "logits"
                yield from _greedy(self.metrics, stored, STEERED, found, how, at)

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
        whole = stored[f"{ALONE}/tokens"].clone()[None]
        start = len(prompts(context.subject.dims, context.scope)[ALONE])
        single = start + SINGLE
        cuts = [0, start, *range(start + 1, single + 1), whole.shape[1]]
        decoder = decoder_of(context.subject)
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
            if right == start:
                yield from self._cache(context, stored, decoder)
        parts = {"prompt": (0, start), SINGLY: (start, single), AT_ONCE: (single, whole.shape[1])}
        found = project(torch.cat(logits, dim=1))[0]
        truth = stored[f"{ALONE}/logits"]
        for what, (left, right) in parts.items():
            if what in stored.facts["disagrees"]:
                self.not_applicable(f"decoding {what}", stored.facts["disagrees"][what])
                continue
            yield agree(
                stored,
                f"{ALONE}/logits",
                found[left:right],
                truth=truth[left:right],
                site="logits",
                on=f"{ALONE}, decoded step by step: {what}",
            )

    def _cache(self, context: Context, stored: Stored, decoder: Decoder) -> Iterator[Comparison]:
        """Keys and values after the prompt, by layer."""
        fam = context.subject.family
        layers = keeping_heads(fam, context.scope)
        if len(layers) < len(context.scope.layers):
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
            keys, values = (once(t, context.subject.dims) for t in held)
            yield agree(stored, key, keys, site=site, on=on, row_dims=2)
            yield agree(stored, f"values/{layer}", values, site=at + "v", on=on, row_dims=2)


def _greedy(
    metrics: dict[str, Any],
    stored: Stored,
    name: str,
    made: Made,
    how: str,
    site: str = "logits",
) -> Iterator[Comparison]:
    """Tokens, and the logits that they were taken from, up to a tie."""
    on = f"{name}, {how}"
    tokens, logits = made.tokens[0], made.logits[0]
    truth = stored[f"{name}/tokens"][: len(tokens)]
    start = len(tokens) - len(logits)
    if truth.shape != tokens.shape:
        yield structure(site, f"{len(tokens)} tokens, expected {len(truth)}", on)
        return
    allowed = bounds.same_function(stored.spread(f"{name}/logits"))[0]
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
        yield agree(stored, f"{name}/logits", shown, truth=whole, site=site, on=on)


def _at_most(count: int, context: Context) -> int:
    return count if context.generated is None else min(count, context.generated)


def _declined(context: Context) -> str | None:
    if not context.reference.family.causal:
        return "a masked encoder generates nothing"
    adapter = getattr(context.subject.model, "adapter", None)
    if not getattr(adapter, "supports_generation", True):
        return f"{type(adapter).__name__} does not support it"
    return None
