"""Greedy continuations of the reference, with and without an edit, and what its cache holds.

The truth is a full forward pass: a sequence is greedy if, in one pass over the whole of it, the
largest logit at each position is the next token (causality makes that the same as one pass for
each prefix). ``generate`` proposes, the forward pass disposes; where the two disagree other than
by a tie, that is a fact about the reference.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from conformance import bounds
from conformance.experiments.base import Apparatus, Experiment
from conformance.experiments.batching import padded, sequences
from conformance.experiments.rows import gaussian, project
from conformance.implementations.base import EVERYWHERE, asked, first_tensor, starts_with
from conformance.prompts import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from conformance.experiments.base import Scope
    from conformance.families import Dims, Family
    from conformance.implementations.huggingface import HuggingFaceModel

#: Tokens generated, where the context has room for them.
STEPS = 64
#: Tokens generated in a batch, or with an edit active: twice the window of a twin.
SHARED = 24
#: The same of a large model.
FEWER = 8
#: The sequence that is generated from alone, and whose cache is kept.
ALONE = "unequal1"
STEERED = "steered"
#: Steered at a site of the encoder, where there is one.
STEERED_ENCODER = "steered_encoder"
#: What a batch of sequences of unequal lengths is called.
TOGETHER = "a padded batch"
#: Generated with a token that sees, and is seen by, all: where an encoder sees a window.
SEEN = "seen_by_all"
#: Generated as the checkpoint's generation config says, and as one with :data:`RULES` does.
OWN, RULED = "configured", "ruled"
#: Tokens generated so.
CONFIGURED = 8
#: As the config of bart-large-cnn: a first and a last token, a shortest length, no n-gram twice.
RULES = {"forced_bos_token_id": 5, "no_repeat_ngram_size": 2, "min_length": 6}
#: Single tokens decoded after a prompt, before the rest is decoded at once.
SINGLE = 12
#: What is decoded with a cache after the prompt.
SINGLY, AT_ONCE = "single tokens", "several tokens at once"


#: What forward passes of transformers call the cache that they return and take.
_CACHES = ("past_key_values", "cache_params", "state")


def steps(fam: Family, dims: Dims, scope: Scope) -> int:
    """How many tokens are generated.

    No more than elsewhere where there are two stacks: TransformerLens runs both anew for each.
    """
    longest = max(len(t) for t in prompts(dims, scope).values())
    return min(_shared(scope) if fam.encoder else STEPS, dims.n_ctx - longest)


def fewer(fam: Family, dims: Dims, scope: Scope) -> int:
    """How many tokens are generated in a batch, or with an edit active."""
    return min(steps(fam, dims, scope), _shared(scope))


def _shared(scope: Scope) -> int:
    return FEWER if scope.large else SHARED


def prompts(dims: Dims, scope: Scope) -> dict[str, torch.Tensor]:
    """Token ids [pos] by name, of unequal lengths."""
    found = sequences(dims, scope)
    return {name: tokens for name, tokens in found.items() if name.startswith("unequal")}


def steered(fam: Family, dims: Dims) -> dict[str, str]:
    """The sites that are edited while tokens are generated, by name of the sequence."""
    sites = {STEERED: f"blocks.{(fam.encoder + dims.n_layers) // 2}.resid_post"}
    if fam.encoder:
        sites[STEERED_ENCODER] = f"blocks.{fam.encoder // 2}.resid_post"
    return sites


def steering(dims: Dims, size: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The edit of such a site: a vector is added.

    Args:
        size: of the vector, root mean square: that of the site.
    """
    vector = size * gaussian("steering", dims.d_model)
    return lambda t: t + vector.to(t.dtype)


def begun(fam: Family, config: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[pos]: what a sequence begins with, the prompt; or what a decoder is given first.

    Args:
        config: the whole model's.
        tokens: the prompt [pos].
    """
    return tokens.new_tensor([starts_with(config)]) if fam.encoder else tokens


def side(fam: Family) -> str:
    """Where a batch is padded: an encoder's as its tokenizer pads it, since positions may count
    from its first slot."""
    return "right" if fam.encoder else "left"


@contextlib.contextmanager
def configured(model: Any, config: Any) -> Iterator[None]:
    """A model of transformers with another generation config, for the duration."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def ruled(config: Any) -> Any:
    """A generation config with :data:`RULES` besides its own."""
    changed = copy.deepcopy(config)
    for name, value in RULES.items():
        setattr(changed, name, value)
    return changed


def once(held: torch.Tensor, dims: Dims) -> torch.Tensor:
    """Keys or values [pos, kv_head, d_head] of a cache that may repeat them for each head."""
    repeated = held.shape[1] == dims.n_heads != dims.n_kv_heads
    return held[:, :: dims.group] if repeated else held


def margins(logits: torch.Tensor) -> torch.Tensor:
    """[pos, d_vocab] -> [pos]: how far the largest is from the next, in units of the row's
    largest absolute value."""
    top = logits.topk(2, dim=-1).values
    return (top[:, 0] - top[:, 1]) / logits.abs().amax(-1)


class Generation(Experiment):
    """Sequences by name (those of :func:`prompts`, and of :func:`steered`), each as

    ``{name}/tokens`` [pos], ``{name}/logits`` [pos, 16] (projected) and ``{name}/margins`` [pos];
    the cache after the prompt :data:`ALONE`, each ``{what}/{layer}`` [pos, kv_head, d_head]:
    ``keys`` and ``values`` as HuggingFace keeps them, ``unrotated`` keys as they were before
    their rotation. Facts: ``sizes`` of the edits, ``disagrees`` where ``generate``
    or decoding with a cache does, ``apart`` how far its logits are then from a full pass's, by
    roundoff alone: in a batch, with a cache, some tokens at a time.

    Of an encoder and a decoder the sequences are the decoder's. Besides: :data:`OWN`, and
    :data:`RULED` without logits; :data:`SEEN` where the encoder sees a window; and the cache after
    :data:`SINGLE` tokens of :data:`ALONE`, with ``cross_keys`` and ``cross_values``, whose
    positions are the encoder's.
    """

    uses: ClassVar[tuple[str, ...]] = (
        "conformance.experiments.rows",
        "conformance.experiments.batching",
    )

    def __init__(self) -> None:
        self._disagrees: dict[str, str] = {}
        self._apart: dict[str, float] = {}
        #: The model last run, and what it generated: with its weights moved, it does so again.
        self._ran: Callable[[], HuggingFaceModel | None] = lambda: None
        self._proposed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        #: What it generated in a batch.
        self._batch: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        model = on.model
        if not model.family.causal:
            return
        again = self._ran() is model
        if not again:
            self._ran, self._disagrees, self._apart = lambda: None, {}, {}
        count = fewer(model.family, model.dims, on.scope)
        found = prompts(model.dims, on.scope)
        if not again:
            self._propose(model, found, count, steps(model.family, model.dims, on.scope))
        whole: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, tokens in found.items():
            more = steps(model.family, model.dims, on.scope) if name == ALONE else count
            whole[name] = self._greedy(model, name, tokens, more)
            yield from _results(name, *whole[name])
        alone = found[ALONE]
        sizes = _sizes(model, alone)
        for name, site in steered(model.family, model.dims).items():
            edit = site, steering(model.dims, sizes[name])
            if not again:
                self._proposed[name] = _first(_generate(model, alone[None], None, count, edit))
            whole[name] = self._greedy(model, name, alone, count, edit)
            yield from _results(name, *whole[name])
            if not again:
                self._note(name, *whole[name], *self._proposed[name])
        if not again:
            self._note(ALONE, *whole[ALONE], *self._proposed[ALONE])
            for name, tokens in found.items():
                kept = len(begun(model.family, model.model.config, tokens)) + count
                own = whole[name][0][:kept], whole[name][1][:kept]
                self._note("batch", *own, *self._batch[name])
            self._stepwise(model, alone, whole[ALONE][0])
        if model.family.encoder:
            yield from self._configured(model, alone, again)
        if model.family.windowed:
            yield from self._seen_by_all(model, alone, again)
        if not again:
            self._ran = weakref.ref(model)
        yield from _cache(model, alone, whole[ALONE][0], on.scope)

    def facts(self, on: Apparatus) -> dict[str, Any]:
        if not on.model.family.causal:
            return {}
        tokens = prompts(on.model.dims, on.scope)[ALONE]
        return {
            "sizes": _sizes(on.model, tokens),
            "disagrees": self._disagrees,
            "apart": self._apart,
        }

    def _configured(
        self, model: HuggingFaceModel, tokens: torch.Tensor, again: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What a generation config asks for: ``generate`` alone knows it."""
        own = model.model.generation_config
        for name, config in ((OWN, own), (RULED, ruled(own))):
            if not again:
                made = _as_configured(model, tokens, CONFIGURED, config)
                self._proposed[name] = _first(made)
            sequence, scores = self._proposed[name]
            if name == RULED:
                yield f"{name}/tokens", sequence
                continue
            logits = model.run(_whole(model, name, tokens, sequence), lambda *_: None)[0]
            yield from _results(name, sequence, logits)
            off = _off(scores, logits[:-1]) if not again else 0.0
            if not off <= bounds.SAME_FUNCTION_CEILING:
                self._disagrees[name] = _OTHER_LOGITS.format(off)

    def _seen_by_all(
        self, model: HuggingFaceModel, tokens: torch.Tensor, again: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        seen = asked(model.family, Prompt(SEEN, tokens[None]))
        if not again:
            made = _generate(model, tokens[None], None, CONFIGURED, None, **seen)
            self._proposed[SEEN] = _first(made)
        found = self._greedy(model, SEEN, tokens, CONFIGURED)
        yield from _results(SEEN, *found)
        if not again:
            self._note(SEEN, *found, *self._proposed[SEEN])

    def _propose(
        self, model: HuggingFaceModel, found: dict[str, torch.Tensor], count: int, alone: int
    ) -> None:
        """What ``generate`` makes of all prompts in a batch, and of :data:`ALONE` alone."""
        fam = model.family
        prompt = padded(list(found.values()), side(fam), model.dims.pad)
        made, scores = _generate(model, prompt.tokens, prompt.mask, count, None)
        width = 0 if fam.encoder else prompt.tokens.shape[1]
        self._batch = {
            name: (made[i, max(0, width - len(tokens)) :], scores[i])
            for i, (name, tokens) in enumerate(found.items())
        }
        own = _first(_generate(model, found[ALONE][None], None, alone, None))
        self._proposed = {**self._batch, ALONE: own}

    def _greedy(
        self,
        model: HuggingFaceModel,
        name: str,
        tokens: torch.Tensor,
        count: int,
        edit: tuple[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The greedy sequence, what it begins with and all, and its logits [pos, d_vocab]."""
        proposed, _ = self._proposed[name]
        first = len(begun(model.family, model.model.config, tokens)) - 1
        sequence = proposed.new_zeros(first + 1 + count)
        sequence[: len(proposed)] = proposed
        edits = None if edit is None else dict([edit])
        while True:
            prompt = _whole(model, name, tokens, sequence)
            logits = model.run(prompt, lambda *_: None, edits=edits)[0]
            chosen = logits.argmax(-1)
            wrong = (sequence[first + 1 :] != chosen[first:-1]).nonzero()
            if len(wrong) == 0:
                return sequence, logits
            at = first + int(wrong[0])
            # Right up to here; what follows the first wrong token is a guess anyway.
            sequence = sequence.clone()
            sequence[at + 1 :] = chosen[at:-1]

    def _stepwise(self, model: HuggingFaceModel, tokens: torch.Tensor, whole: torch.Tensor) -> None:
        """Whether the reference's own cache gives the logits of a full forward pass."""
        import torch

        start = len(begun(model.family, model.model.config, tokens))
        single = start + SINGLE
        truth = model.run(_whole(model, ALONE, tokens, whole), lambda *_: None)[0]
        cuts = [0, start, *range(start + 1, single + 1), len(whole)]
        cache: dict[str, Any] = {}
        logits: list[torch.Tensor] = []
        for left, right in itertools.pairwise(cuts):
            if right <= left:
                continue
            with model.session():
                given = _inputs(model, tokens, whole[left:right])
                made = model.model(**given, use_cache=True, **cache)
            cache = {name: made[name] for name in _CACHES if made.get(name) is not None}
            if not cache:
                self._disagrees[SINGLY] = self._disagrees[AT_ONCE] = (
                    "the forward pass of transformers returns no cache"
                )
                return
            logits.append(made.logits[0])
        found = torch.cat(logits)
        for what, left, right in ((SINGLY, start, single), (AT_ONCE, single, len(whole))):
            off = self._apart[what] = _off(found[left:right], truth[left:right])
            if not off <= bounds.SAME_FUNCTION_CEILING:
                self._disagrees[what] = (
                    f"transformers decodes {what} after its cache otherwise than in a full "
                    f"forward pass: its logits are {off:.1e} apart"
                )

    def _note(
        self,
        name: str,
        sequence: torch.Tensor,
        logits: torch.Tensor,
        proposed: torch.Tensor,
        scores: torch.Tensor,
    ) -> None:
        """Whether ``generate`` made this sequence [pos], of these logits.

        Args:
            logits: of a full forward pass, [pos, d_vocab].
            scores: of each step of ``generate``, [step, d_vocab].
        """
        margin = margins(logits)
        if len(sequence) != len(proposed):
            self._disagrees[name] = f"generate() of transformers stops at {len(proposed)} tokens"
            return
        apart = (sequence != proposed).nonzero()
        if len(apart) == 0:
            off = _off(scores, logits[-len(scores) - 1 : -1])
            self._apart[name] = max(off, self._apart.get(name, 0.0))
            if not off <= bounds.SAME_FUNCTION_CEILING:
                self._disagrees[name] = _OTHER_LOGITS.format(off)
            return
        at = int(apart[0])
        if float(margin[at - 1]) > bounds.SAME_FUNCTION_CEILING:
            self._disagrees[name] = (
                f"generate() of transformers takes another token than a full forward pass at "
                f"position {at}, where the largest logit leads by {float(margin[at - 1]):.1e}"
            )


_OTHER_LOGITS = (
    "generate() of transformers takes its tokens from other logits than a full forward pass gives: "
    "{:.1e} apart"
)


def _inputs(
    model: HuggingFaceModel, tokens: torch.Tensor, next_ones: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What HuggingFace's model is given to go on with these tokens [pos] of a sequence."""
    if not model.family.encoder:
        return {"input_ids": next_ones[None]}
    return {"input_ids": tokens[None], "decoder_input_ids": next_ones[None]}


def _whole(
    model: HuggingFaceModel, name: str, tokens: torch.Tensor, sequence: torch.Tensor
) -> Prompt:
    """One forward pass over a whole sequence [pos] that was generated from ``tokens`` [pos]."""
    if not model.family.encoder:
        return Prompt(name, sequence[None])
    # As generation, which is told of no token that sees all unless it is asked to be.
    told = model.family.windowed and name != SEEN
    extra = {EVERYWHERE: tokens.new_zeros(1, len(tokens))} if told else {}
    return Prompt(name, tokens[None], extra=extra, decoder=sequence[None])


def _off(found: torch.Tensor, truth: torch.Tensor) -> float:
    """How far logits [pos, d_vocab] are apart at most, in units of the row's largest."""
    if len(truth) == 0:
        return 0.0
    return float(((found - truth).abs().amax(-1) / truth.abs().amax(-1)).max())


def _results(
    name: str, tokens: torch.Tensor, logits: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}/tokens", tokens
    yield f"{name}/logits", project(logits)
    yield f"{name}/margins", margins(logits)


def _generate(
    model: HuggingFaceModel,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    count: int,
    edit: tuple[str, Callable[[torch.Tensor], torch.Tensor]] | None,
    **given: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """HuggingFace's own greedy generation with its cache, past any end of text.

    Returns:
        Tokens [batch, pos], the prompt first, or those of the decoder; and logits
        [batch, step, d_vocab].
    """
    import torch
    import transformers

    config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
        **_starting(model),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.session())
        # What a config leaves open, the model's own decides: the end of a text among others.
        stack.enter_context(configured(model.model, config))
        if edit is not None:
            site, change = edit
            layer = int(site.split(".")[1])
            block = dict(model.model.named_modules())[model.family.of(layer).at("", layer)]

            def hook(_: Any, __: Any, output: Any) -> Any:
                shown = change(first_tensor(output))
                return shown if isinstance(output, torch.Tensor) else (shown, *output[1:])

            stack.callback(block.register_forward_hook(hook).remove)
        found = model.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens) if mask is None else mask,
            **given,
        )
    return found.sequences, torch.stack(list(found.logits), dim=1)


def _starting(model: HuggingFaceModel) -> dict[str, int]:
    if not model.family.encoder:
        return {}
    return {"decoder_start_token_id": starts_with(model.model.config)}


def _as_configured(
    model: HuggingFaceModel, tokens: torch.Tensor, count: int, config: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """HuggingFace's greedy generation under a generation config, as :func:`_generate` returns it.

    Args:
        tokens: the prompt [pos].
    """
    import torch

    with model.session(), configured(model.model, config):
        found = model.model.generate(
            tokens[None],
            attention_mask=torch.ones_like(tokens)[None],
            max_new_tokens=count,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return found.sequences, torch.stack(list(found.logits), dim=1)


def _first(made: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return made[0][0], made[1][0]


def _sizes(model: HuggingFaceModel, tokens: torch.Tensor) -> dict[str, float]:
    """Root mean square of each edited site, as a power of two: roundoff does not move it."""
    sites = {site: name for name, site in steered(model.family, model.dims).items()}
    seen: dict[str, float] = {}

    def on_site(name: str, value: torch.Tensor) -> None:
        if name in sites:
            seen[sites[name]] = 2.0 ** round(math.log2(float(value.square().mean().sqrt())))

    sequence = begun(model.family, model.model.config, tokens)
    model.run(_whole(model, ALONE, tokens, sequence), on_site)
    return seen


def keeping_heads(fam: Family, scope: Scope) -> list[int]:
    """Layers whose cache holds keys and values of heads: the decoder's, where there are two
    stacks."""
    layers = [i for i in scope.layers if i >= fam.encoder]
    kinds = {i: fam.of(i) for i in layers}
    return [i for i, o in kinds.items() if o.attn and (o.q or o.qkv) and o.kv_from is None]


def kept(fam: Family, tokens: torch.Tensor) -> int:
    """After how many tokens of a sequence its cache is compared."""
    return 1 + SINGLE if fam.encoder else len(tokens)


def _cache(
    model: HuggingFaceModel, tokens: torch.Tensor, whole: torch.Tensor, scope: Scope
) -> Iterator[tuple[str, torch.Tensor]]:
    """Of each layer, after the prompt, or after some tokens ``whole`` [pos] of a decoder."""
    fam = model.family
    found = keeping_heads(fam, scope)
    if not found:
        return
    given = _inputs(model, tokens, whole[: kept(fam, tokens)])
    with model.session():
        cache = model.model(**given, use_cache=True).get("past_key_values")
    if cache is None:
        return
    if fam.encoder:
        for prefix, part in (
            ("", cache.self_attention_cache),
            ("cross_", cache.cross_attention_cache),
        ):
            for layer in found:
                held = part.layers[layer - fam.encoder]
                yield f"{prefix}keys/{layer}", _held(held.keys, model, layer)
                yield f"{prefix}values/{layer}", _held(held.values, model, layer)
        return
    for layer in found:
        for what in ("keys", "values"):
            yield f"{what}/{layer}", _held(getattr(cache.layers[layer], what), model, layer)
    own = {i: fam.of(i) for i in found}
    sites = {
        f"blocks.{i}.attn.{'k' if o.qk_norm is None else 'k_normed'}": i for i, o in own.items()
    }
    seen: dict[str, torch.Tensor] = {}
    model.run(
        Prompt(ALONE, tokens[None]),
        lambda name, value: seen.update({name: value.clone()}) if name in sites else None,
    )
    # OLMo clips keys after the site that shows them.
    clip = getattr(model.config, "clip_qkv", None) or math.inf
    for site, layer in sites.items():
        yield f"unrotated/{layer}", seen[site][0].clamp(-clip, clip)


def _held(held: torch.Tensor, model: HuggingFaceModel, layer: int) -> torch.Tensor:
    """[1, kv_head, pos, d_head] -> [pos, kv_head, d_head]."""
    return once(held[0].transpose(0, 1), model.dims.of(layer)).contiguous()


EXPERIMENT = Generation()
