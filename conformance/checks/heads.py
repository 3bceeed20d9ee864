"""What is said of heads: ``detect_head``'s scores, and a circuit studied head by head."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

from conformance import bounds
from conformance.checks.base import Check, Context, agree, identical, structure
from conformance.experiments.heads import LEFT_OUT, NAMES, causal_layers, patched, scores
from conformance.prompts import Prompt
from conformance.records import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from conformance.experiments.store import Stored

_CAUSAL = "detect_head's patterns are those of a causal mask"

#: How many heads a record names.
_NAMED = 5
_INDUCTION = NAMES.index("induction_head") * len(LEFT_OUT)
#: What fails where the function itself does: no site.
_DETECTOR = "detect_head"


class Heads(Check):
    """Scores of heads on repeated random tokens, head by head; and, of models that have learned a
    language, a logit-lens curve, direct attribution and patching of heads.

    The metrics say how the two sides' scores correlate and how far they are apart at most.
    """

    name: ClassVar[str] = "heads"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        fam = context.reference.family
        layers = causal_layers(fam, context.reference.dims)
        if any("attn.pattern" in fam.absent(i) for i in layers):
            self.not_applicable(self.name, "not every layer has attention")
            return
        if not fam.causal:
            self.not_applicable(self.name, _CAUSAL)
            return
        made = context.experiment(self.name)
        self.metrics.update(context.scope.said())
        if fam.encoder:
            self.not_applicable("heads of the encoder and of attention to it", _CAUSAL)
            yield from self._decoder(context, made)
        else:
            with context.subject.session():
                yield from self._detected(context, made)
        if made.facts["untold"] is not None:
            self.not_applicable("facts and indirect objects", made.facts["untold"])
            return
        with context.subject.session():
            yield from self._curve(context, made)
            yield from self._attributed(context, made)
        yield from self._patched(context, made)

    def _said(self, what: str, truth: torch.Tensor, value: torch.Tensor) -> None:
        """Correlation, largest difference, and the largest heads of either side."""
        import torch

        a, b = truth.double().flatten(), value.double().flatten()
        self.metrics[what] = {
            "correlation": float(torch.corrcoef(torch.stack([a, b]))[0, 1]),
            "largest_difference": float((a - b).abs().max()),
        }

    def _heads(self, what: str, truth: torch.Tensor, value: torch.Tensor) -> None:
        """The same of scores [layer, head], with the heads that score highest."""
        self._said(what, truth, value)
        for side, known in (("reference", truth), ("subject", value)):
            first = known.flatten().topk(min(_NAMED, known.numel())).indices.tolist()
            width = known.shape[1]
            self.metrics[what][side] = [f"L{i // width}H{i % width}" for i in first]

    # --- detect_head ---

    def _detected(self, context: Context, made: Stored) -> Iterator[Comparison]:
        import torch
        from transformer_lens.head_detector import detect_head

        model, tokens = context.subject.model, made["repeated"].clone()
        layers = range(context.reference.dims.n_layers)
        site = "blocks.0.attn.pattern"

        def detect(case: tuple[str, bool, bool], measure: str, **given: Any) -> torch.Tensor:
            name, first, current = case
            return detect_head(
                model,
                "repeated",
                name,
                exclude_bos=first,
                exclude_current_token=current,
                error_measure=measure,
                **given,
            ).double()

        cases = [(name, *out) for name in NAMES for out in LEFT_OUT]
        cache: Any = None
        with _tokens(model, tokens):
            with self.port("detect_head without a cache", site):
                yield from self._scores(made, "mul", detect(cases[0], "mul")[None], slice(0, 1))
            # The others from one cache, which must not be changed.
            with self.port("run_with_cache of the patterns", site):
                cache = model.run_with_cache(
                    tokens,
                    remove_batch_dim=True,
                    names_filter=lambda name: name.endswith("hook_pattern"),
                )[1]
            if cache is None:
                return
            before = {i: cache["pattern", i].clone() for i in layers}
            for measure in ("mul", "abs"):
                found: list[torch.Tensor] = []
                with self.port(f"detect_head with {measure!r}", site):
                    found = [detect(case, measure, cache=cache) for case in cases]
                if found:
                    yield from self._scores(made, measure, torch.stack(found), slice(None))
        for layer, kept in before.items():
            yield identical(
                kept,
                cache["pattern", layer],
                site=f"blocks.{layer}.attn.pattern",
                on="repeated",
                note="detect_head leaves the cache as it was",
            )

    def _decoder(self, context: Context, made: Stored) -> Iterator[Comparison]:
        """The function itself; and its scores of the decoder's patterns, computed by hand."""
        import torch
        from transformer_lens.head_detector import detect_head

        subject, layers = (
            context.subject,
            causal_layers(context.subject.family, context.subject.dims),
        )
        tokens = made["repeated"].clone()
        with subject.session(), _tokens(subject.model, tokens), self.port("detect_head", _DETECTOR):
            found = detect_head(subject.model, "repeated", NAMES[0])
            # Either stack's layers, or the decoder's: where a head looks back one token.
            yield from self._scores(made, "mul", found[None, -len(layers) :].double(), slice(0, 1))
        shown: dict[str, torch.Tensor] = {}
        ran = False

        def keep(name: str, value: torch.Tensor) -> None:
            shown[name] = value[0].detach().clone()

        with self.port("the forward pass on repeated tokens"):
            subject.run(Prompt("repeated", tokens), keep)
            ran = True
        if not ran:
            return
        sites = [f"blocks.{i}.attn.pattern" for i in layers]
        missing = [site for site in sites if site not in shown]
        for site in missing:
            yield structure(site, "is not shown", "repeated")
        if not missing:
            by_hand = scores(torch.stack([shown[site] for site in sites]), made["read"][0])
            self._heads("induction", made["mul"][_INDUCTION], by_hand["mul"][_INDUCTION])
            for measure, value in by_hand.items():
                for row, site in enumerate(sites):
                    yield agree(
                        made,
                        measure,
                        value[:, row],
                        truth=made[measure][:, row],
                        site=site,
                        on="repeated",
                        row_dims=2,
                        note=f"detect_head's {measure} by hand: [pattern x what is left out, head]",
                    )

    def _scores(
        self, made: Stored, measure: str, found: torch.Tensor, cases: slice
    ) -> Iterator[Comparison]:
        """``found`` [case, layer, head]."""
        truth = made[measure][cases]
        if found.shape != truth.shape:
            note = f"scores {tuple(found.shape)}, expected {tuple(truth.shape)}"
            yield structure(None, f"detect_head: {note}", "repeated")
            return
        if measure == "mul" and len(found) > _INDUCTION:
            self._heads("induction", truth[_INDUCTION], found[_INDUCTION])
        for layer in range(truth.shape[1]):
            site = f"blocks.{layer}.attn.pattern"
            note = f"detect_head, {measure}: [pattern x what is left out, head]"
            if measure == "abs":
                yield _rounded(truth[:, layer], found[:, layer], made.spread(measure), site, note)
                continue
            yield agree(
                made,
                measure,
                found[:, layer],
                truth=truth[:, layer],
                site=site,
                on="repeated",
                row_dims=2,
                note=note,
            )

    # --- what a trained model does ---

    def _curve(self, context: Context, made: Stored) -> Iterator[Comparison]:
        import torch

        model, facts = context.subject.model, made.facts
        with self.port("logit lens of a fact"):
            cache = model.run_with_cache(made["fact"].clone())[1]
            normed = cache.accumulated_resid(apply_ln=True, pos_slice=-1)
            logits = model.unembed(normed.transpose(0, 1))[0] * facts["scale"]
            if facts["cap"] is not None:
                logits = facts["cap"] * torch.tanh(logits / facts["cap"])
            found = logits.log_softmax(-1)[:, facts["answer"]]
            self._said("fact", made["curve"], found)
            yield agree(made, "curve", found, site="logits", on="fact", note="logit-lens curve")

    def _attributed(self, context: Context, made: Stored) -> Iterator[Comparison]:
        model, truth = context.subject.model, made["attribution"]
        with self.port("attribution of heads"):
            cache = model.run_with_cache(made["objects"].clone())[1]
            stack = cache.stack_head_results(pos_slice=-1)
            right, wrong = made["right"].clone(), made["wrong"].clone()
            found = cache.logit_attrs(stack, right, wrong, pos_slice=-1)
            found = found.unflatten(0, (truth.shape[0], -1))
            self._heads("indirect_objects", truth.mean(-1), found.mean(-1))
            for layer in range(len(truth)):
                yield agree(
                    made,
                    "attribution",
                    found[layer],
                    truth=truth[layer],
                    site=f"blocks.{layer}.attn_out",
                    on="objects",
                    row_dims=2,
                    note="direct attribution of each head",
                )

    def _patched(self, context: Context, made: Stored) -> Iterator[Comparison]:
        import torch

        subject, objects = context.subject, made["objects"].clone()
        layers = context.scope.layers
        sites = [f"blocks.{i}.attn.z" for i in layers]
        if any(site not in subject.editable() for site in sites):
            self.not_applicable("head patching", "no hook of the port can edit z")
            return
        clean: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            if name in sites:
                clean[name] = value[0].detach().clone()

        pair = int(made["right"][1]), int(made["wrong"][1])
        found: list[torch.Tensor] = []
        with self.port("patching heads"):
            subject.run(Prompt("objects", objects[:1]), keep)
            for layer, site in zip(layers, sites, strict=True):
                found.append(
                    patched(
                        lambda prompt, edits: subject.run(prompt, lambda *_: None, edits=edits),
                        objects,
                        layer,
                        clean[site],
                        pair,
                    )
                )
        if len(found) < len(layers):
            return
        self._said("head_patching", made["patched"], torch.stack(found))
        for row, (site, value) in enumerate(zip(sites, found, strict=True)):
            yield agree(
                made,
                "patched",
                value,
                truth=made["patched"][row],
                site=site,
                on="objects",
                note="logit difference with one head patched",
            )


def _rounded(
    truth: torch.Tensor, found: torch.Tensor, spread: float, site: str, note: str
) -> Comparison:
    """Scores 1 - a distance that the library rounds to three decimals; a tie goes either way."""
    import torch

    allowed, source = bounds.same_function(spread)
    due = [1 - torch.round(1 - truth + tie, decimals=3) for tie in (-allowed, allowed)]
    away = torch.minimum(*((found - d).abs() for d in due))
    measured = float(away.max())
    index = tuple(int(i) for i in (away == measured).nonzero()[0]) if measured == measured else None
    return Comparison(
        judgement="same_function",
        site=site,
        prompt="repeated",
        measured=measured,
        allowed=allowed,
        ok=measured <= allowed,
        index=index,
        reference=None if index is None else float(due[0][index]),
        subject=None if index is None else float(found[index]),
        bound=source,
        note=note,
    )


@contextlib.contextmanager
def _tokens(model: Any, tokens: torch.Tensor) -> Iterator[None]:
    """Whatever text ``detect_head`` is given is these tokens: a tokenizer is another check's."""
    object.__setattr__(model, "to_tokens", lambda *_, **__: tokens)
    try:
        yield
    finally:
        object.__delattr__(model, "to_tokens")
