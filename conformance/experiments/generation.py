"""Greedy continuations of the reference, with and without an edit, and what its cache holds.

The truth is a full forward pass: a sequence is greedy if, in one pass over the whole of it, the
largest logit at each position is the next token (causality makes that the same as one pass for
each prefix). ``generate`` proposes, the forward pass disposes; where the two disagree other than
by a tie, that is a fact about the reference.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from conformance import bounds
from conformance.experiments.base import Apparatus, Experiment
from conformance.experiments.batching import padded, sequences
from conformance.experiments.rows import gaussian, project
from conformance.implementations.base import first_tensor
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
#: Single tokens decoded after a prompt, before the rest is decoded at once.
SINGLE = 12
#: What is decoded with a cache after the prompt.
SINGLY, AT_ONCE = "single tokens", "several tokens at once"


#: What forward passes of transformers call the cache that they return and take.
_CACHES = ("past_key_values", "cache_params", "state")


def steps(dims: Dims, scope: Scope) -> int:
    """How many tokens are generated."""
    longest = max(len(t) for t in prompts(dims, scope).values())
    return min(STEPS, dims.n_ctx - longest)


def fewer(dims: Dims, scope: Scope) -> int:
    """How many tokens are generated in a batch, or with an edit active."""
    return min(steps(dims, scope), FEWER if scope.large else SHARED)


def prompts(dims: Dims, scope: Scope) -> dict[str, torch.Tensor]:
    """Token ids [pos] by name, of unequal lengths."""
    found = sequences(dims, scope)
    return {name: tokens for name, tokens in found.items() if name.startswith("unequal")}


def steering(dims: Dims, size: float) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The site that is edited while tokens are generated, and the edit: a vector is added.

    Args:
        size: of the vector, root mean square: that of the site.
    """
    vector = size * gaussian("steering", dims.d_model)
    return f"blocks.{dims.n_layers // 2}.resid_post", lambda t: t + vector.to(t.dtype)


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
    """Sequences by name (those of :func:`prompts`, and ``steered``), each as

    ``{name}/tokens`` [pos], ``{name}/logits`` [pos, 16] (projected) and ``{name}/margins`` [pos];
    the cache after the prompt :data:`ALONE`, each ``{what}/{layer}`` [pos, kv_head, d_head]:
    ``keys`` and ``values`` as HuggingFace keeps them, ``unrotated`` keys as they were before
    their rotation. Facts: ``size`` of the edit, ``disagrees`` where ``generate``
    or decoding with a cache does.
    """

    uses: ClassVar[tuple[str, ...]] = (
        "conformance.experiments.rows",
        "conformance.experiments.batching",
    )

    def __init__(self) -> None:
        self._disagrees: dict[str, str] = {}
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
            self._ran, self._disagrees = lambda: None, {}
        count = fewer(model.dims, on.scope)
        found = prompts(model.dims, on.scope)
        if not again:
            self._propose(model, found, count, steps(model.dims, on.scope))
        whole: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, tokens in found.items():
            more = steps(model.dims, on.scope) if name == ALONE else count
            whole[name] = self._greedy(model, name, tokens, more)
            yield from _results(name, *whole[name])
        edit = steering(model.dims, _size(model, found[ALONE]))
        if not again:
            self._proposed[STEERED] = _first(
                _generate(model, found[ALONE][None], None, count, edit)
            )
        steered = self._greedy(model, STEERED, found[ALONE], count, edit)
        yield from _results(STEERED, *steered)
        if not again:
            self._note(ALONE, *whole[ALONE], *self._proposed[ALONE])
            self._note(STEERED, *steered, *self._proposed[STEERED])
            for name, tokens in found.items():
                kept = len(tokens) + count
                own = whole[name][0][:kept], whole[name][1][:kept]
                self._note("batch", *own, *self._batch[name])
            self._stepwise(model, whole[ALONE][0], len(found[ALONE]))
            self._ran = weakref.ref(model)
        yield from _cache(model, found[ALONE], on.scope)

    def facts(self, on: Apparatus) -> dict[str, Any]:
        if not on.model.family.causal:
            return {}
        tokens = prompts(on.model.dims, on.scope)[ALONE]
        return {"size": _size(on.model, tokens), "disagrees": self._disagrees}

    def _propose(
        self, model: HuggingFaceModel, found: dict[str, torch.Tensor], count: int, alone: int
    ) -> None:
        """What ``generate`` makes of all prompts in a batch, and of :data:`ALONE` alone."""
        prompt = padded(list(found.values()), "left")
        made, scores = _generate(model, prompt.tokens, prompt.mask, count, None)
        width = prompt.tokens.shape[1]
        self._batch = {
            name: (made[i, width - len(tokens) :], scores[i])
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
        """The greedy sequence, prompt and all, and its logits [pos, d_vocab]."""
        proposed, _ = self._proposed[name]
        sequence = proposed.new_zeros(len(tokens) + count)
        sequence[: len(proposed)] = proposed
        edits = None if edit is None else dict([edit])
        first = len(tokens) - 1
        while True:
            prompt = Prompt(name, sequence[None])
            logits = model.run(prompt, lambda *_: None, edits=edits)[0]
            chosen = logits.argmax(-1)
            wrong = (sequence[first + 1 :] != chosen[first:-1]).nonzero()
            if len(wrong) == 0:
                return sequence, logits
            at = first + int(wrong[0])
            # Right up to here; what follows the first wrong token is a guess anyway.
            sequence = sequence.clone()
            sequence[at + 1 :] = chosen[at:-1]

    def _stepwise(self, model: HuggingFaceModel, whole: torch.Tensor, start: int) -> None:
        """Whether the reference's own cache gives the logits of a full forward pass."""
        import torch

        single = start + SINGLE
        truth = model.run(Prompt(ALONE, whole[None]), lambda *_: None)[0]
        cuts = [0, start, *range(start + 1, single + 1), len(whole)]
        cache: dict[str, Any] = {}
        logits: list[torch.Tensor] = []
        for left, right in itertools.pairwise(cuts):
            if right <= left:
                continue
            with model.session():
                made = model.model(input_ids=whole[None, left:right], use_cache=True, **cache)
            cache = {name: made[name] for name in _CACHES if made.get(name) is not None}
            if not cache:
                self._disagrees[SINGLY] = self._disagrees[AT_ONCE] = (
                    "the forward pass of transformers returns no cache"
                )
                return
            logits.append(made.logits[0])
        found = torch.cat(logits)
        for what, left, right in ((SINGLY, start, single), (AT_ONCE, single, len(whole))):
            off = _off(found[left:right], truth[left:right])
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
            if not off <= bounds.SAME_FUNCTION_CEILING:
                self._disagrees[name] = (
                    f"generate() of transformers takes its tokens from other logits than a full "
                    f"forward pass gives: {off:.1e} apart"
                )
            return
        at = int(apart[0])
        if float(margin[at - 1]) > bounds.SAME_FUNCTION_CEILING:
            self._disagrees[name] = (
                f"generate() of transformers takes another token than a full forward pass at "
                f"position {at}, where the largest logit leads by {float(margin[at - 1]):.1e}"
            )


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """HuggingFace's own greedy generation with its cache, past any end of text.

    Returns:
        Tokens [batch, pos], the prompt first, and logits [batch, step, d_vocab].
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
    )
    own = model.model.generation_config
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.session())
        # What a config leaves open, the model's own decides: the end of a text among others.
        stack.callback(setattr, model.model, "generation_config", own)
        model.model.generation_config = config
        if edit is not None:
            site, change = edit
            layer = int(site.split(".")[1])
            block = dict(model.model.named_modules())[model.family.at("", layer)]

            def hook(_: Any, __: Any, output: Any) -> Any:
                shown = change(first_tensor(output))
                return shown if isinstance(output, torch.Tensor) else (shown, *output[1:])

            stack.callback(block.register_forward_hook(hook).remove)
        found = model.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens) if mask is None else mask,
        )
    return found.sequences, torch.stack(list(found.logits), dim=1)


def _first(made: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return made[0][0], made[1][0]


def _size(model: HuggingFaceModel, tokens: torch.Tensor) -> float:
    """Root mean square of the edited site, as a power of two: roundoff does not move it."""
    site, _ = steering(model.dims, 1.0)
    seen: list[float] = []

    def on_site(name: str, value: torch.Tensor) -> None:
        if name == site:
            seen.append(float(value.square().mean().sqrt()))

    model.run(Prompt(ALONE, tokens[None]), on_site)
    return 2.0 ** round(math.log2(seen[0]))


def keeping_heads(fam: Family, scope: Scope) -> list[int]:
    """Layers whose cache holds keys and values of heads."""
    return [i for i in scope.layers if fam.of(i).attn and (fam.of(i).q or fam.of(i).qkv)]


def _cache(
    model: HuggingFaceModel, tokens: torch.Tensor, scope: Scope
) -> Iterator[tuple[str, torch.Tensor]]:
    found = keeping_heads(model.family, scope)
    if not found:
        return
    with model.session():
        cache = model.model(input_ids=tokens[None], use_cache=True).get("past_key_values")
    if cache is None:
        return
    layers = cache.layers
    for layer in found:
        for what in ("keys", "values"):
            held = getattr(layers[layer], what)[0].transpose(0, 1)
            yield f"{what}/{layer}", once(held, model.dims).contiguous()
    own = {i: model.family.of(i) for i in found}
    sites = {
        f"blocks.{i}.attn.{'k' if fam.qk_norm is None else 'k_normed'}": i for i, fam in own.items()
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


EXPERIMENT = Generation()
