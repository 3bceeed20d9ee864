"""Lenses of an encoder and a decoder.

The library's functions of a cache; and, on what the port shows, what people compute by hand: each
stack's parts add up to its last stream, its head reads every stream, heads add up to attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checks.base import is_ours, same, structure
from conformance.checks.circuits import circuits
from conformance.checks.readings import Reading
from conformance.experiments.lens import PROMPT, pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from conformance.records import Comparison

    _Judge = Callable[[], Iterator[Comparison]]

_NORMED_SUMS = "norms stand in the residual streams: they are no sums of parts"
#: What an error says of what the library does not claim.
_DISCLAIMED = "non-decoder-only architectures"
_STREAMS = ("resid_pre", "resid_mid", "resid_cross", "resid_post")
_PARTS = ("attn_out", "cross_attn_out", "mlp_out", "resid_pre")


class StackLens(Reading):
    """One subject's lenses of two stacks, on one prompt. Called inside the subject's session."""

    def all(self) -> Iterator[Comparison]:
        options = self.context.subject.run_options(self.prompt)
        with self.check.port("run_with_cache"):
            self.cache = self.model.run_with_cache(self.prompt.tokens, **options)[1]
        if self.cache is None:
            return
        yield from self._functions()
        shown: dict[str, torch.Tensor] = {}
        ran = False
        with self.check.port("the forward pass"):
            self.context.subject.run(
                self.prompt, lambda name, value: shown.update({name: value.detach().clone()})
            )
            ran = True
        if ran:
            if self.fam.post_norm:
                self.check.not_applicable("sums of parts", _NORMED_SUMS)
            else:
                yield from self._sums(shown)
            with self.check.port("unembed(ln_final(stream))", "logits"):
                yield from self._read_out(shown)
            yield from self._heads(shown)
        yield from circuits(self.check, self.context, self.made)

    # --- the library's functions ---

    def _functions(self) -> Iterator[Comparison]:
        """Those of the cache and of the model. What they give must be the reference's."""
        cache, layers = self.cache, range(self.dims.n_layers)
        streams = [f"blocks.{i}.{kind}" for i in layers for kind in _STREAMS]
        parts = ["embed", "pos_embed"]
        parts += [f"blocks.{i}.{kind}" for i in layers for kind in _PARTS]

        def all_among(get: Callable[[], torch.Tensor], sites: Sequence[str]) -> _Judge:
            return lambda: self._among(get(), sites)

        functions: dict[str, _Judge] = {
            "accumulated_resid": all_among(cache.accumulated_resid, streams),
            "decompose_resid": all_among(cache.decompose_resid, parts),
            "stack_activation": all_among(lambda: cache.stack_activation("resid_post"), streams),
            "apply_ln_to_stack": self._scaled,
            "logit_attrs": self._attributed,
            "stack_head_results": self._stacked_heads,
            "get_neuron_results": self._neurons,
        }
        if hasattr(cache, "logit_lens"):  # since 4.0
            functions["logit_lens"] = lambda: self.lens(
                "logit_lens", cache.logit_lens(positions=None).values
            )
        for name, judge in functions.items():
            yield from self._called(f"cache.{name}", judge)
        yield from self._called("set_use_attn_result", self._switched)

    def _called(self, what: str, judge: _Judge) -> Iterator[Comparison]:
        """What a function gives; or that the library says that it is not for such a model.

        One that raises fails under its own name, which is no site's.
        """
        try:
            yield from list(judge())
        except Exception as error:
            if is_ours(error):
                raise
            said = f"{type(error).__name__}: {error}"
            if isinstance(error, NotImplementedError) or _DISCLAIMED in said:
                self.check.not_applicable(what, f"the library says so: {error}")
            else:
                yield structure(what, f"{what} raised {said}", PROMPT)

    def _among(self, rows: torch.Tensor, sites: Sequence[str]) -> Iterator[Comparison]:
        """Every row is one of these sites: the nearest."""
        known = [site for site in sites if site in self.context.reference.sites]
        for number, row in enumerate(rows):
            found = [
                self.as_site(site, row, f"row {number} of what the cache gives") for site in known
            ]
            yield min(found, key=lambda c: c.measured)

    def _last(self) -> torch.Tensor:
        """The last stream, as a stack of one."""
        return self.truth(f"blocks.{self.last}.resid_post")[None].clone()

    def _scaled(self) -> Iterator[Comparison]:
        scaled = self.cache.apply_ln_to_stack(self._last(), layer=-1)[0]
        weight, bias = self.norm()
        if self.fam.ln_final:
            yield self.as_site("ln_final", scaled * weight + bias, "apply_ln_to_stack")

    def _attributed(self) -> Iterator[Comparison]:
        right, wrong = pair(self.prompt)
        found = self.cache.logit_attrs(self._last(), right, wrong)
        scaled = self.cache.apply_ln_to_stack(self._last(), layer=-1)
        w_u, _ = self.head()
        due = scaled @ (w_u[:, right] - w_u[:, wrong])
        spread = self.context.reference.spread(PROMPT, "logits")
        note = "logit_attrs of the last stream"
        yield same(due, found, spread, site="logits", on=PROMPT, note=note)

    def _stacked_heads(self) -> Iterator[Comparison]:
        stack, heads = self.cache.stack_head_results(), self.dims.n_heads
        for layer in self.context.scope.layers:
            part = stack[layer * heads : (layer + 1) * heads, 0].transpose(0, 1)
            yield from self.head_parts(layer, part, "stack_head_results")

    def _neurons(self) -> Iterator[Comparison]:
        for layer in self.context.scope.layers:
            parts = self.cache.get_neuron_results(layer)[0]
            whole = parts.sum(-2)[None] + self.bias(f"blocks.{layer}.mlp.b_out")
            yield self.as_site(self.out(layer, "mlp"), whole, "get_neuron_results: sum and bias")

    def _switched(self) -> Iterator[Comparison]:
        """The same logits where heads' results are computed apart."""
        options = self.context.subject.run_options(self.prompt)
        self.model.set_use_attn_result(True)
        try:
            logits = self.model(self.prompt.tokens, **options)
        finally:
            self.model.set_use_attn_result(False)
        yield self.as_site("logits", logits, "with use_attn_result")

    # --- by hand ---

    def _stacks(self) -> Iterator[tuple[str, range]]:
        yield "encoder", range(self.fam.encoder)
        yield "decoder", range(self.fam.encoder, self.dims.n_layers)

    def _sums(self, shown: dict[str, torch.Tensor]) -> Iterator[Comparison]:
        """The first stream of a stack and all that is added to it make the last."""
        for stack, layers in self._stacks():
            sites, end = [f"blocks.{layers[0]}.resid_pre"], f"blocks.{layers[-1]}.resid_post"
            for i in layers:
                kinds = ("attn_out", "cross_attn_out", "mlp_out")
                sites += [f"blocks.{i}.{k}" for k in kinds if k not in self.fam.absent(i)]
            missing = [site for site in (*sites, end) if site not in shown]
            for site in missing:
                yield structure(site, f"is not shown: no sum of the {stack}'s parts", PROMPT)
            if missing:
                continue
            whole = sum((shown[site] for site in sites[1:]), shown[sites[0]])
            note = f"the {stack}'s embedding and all of its parts"
            yield self.as_site(end, whole, note)
            spread = self.context.reference.spread(PROMPT, end)
            yield same(whole, shown[end], spread, site=end, on=PROMPT, note=f"is {note}")

    def _read_out(self, shown: dict[str, torch.Tensor]) -> Iterator[Comparison]:
        """The port's own final norm and unembedding, on what it shows of its streams."""
        import torch

        parts = self.context.subject.components()
        first, end = self.fam.encoder, f"blocks.{self.last}.resid_post"
        streams = [f"blocks.{i}.resid_pre" for i in range(first, self.last + 1)]
        logits = []
        for site in (*streams, end):
            normed = parts["ln_final"](shown[site]) if self.fam.ln_final else shown[site]
            logits.append(self.capped(parts["unembed"](normed)))
        yield from self.lens("unembed(ln_final(stream))", torch.stack(logits))
        if self.fam.encoder_ln_final:
            normed = parts["ln_encoder"](shown[f"blocks.{first - 1}.resid_post"])
            yield self.as_site("ln_encoder", normed, "encoder_ln_final(stream)")

    def _heads(self, shown: dict[str, torch.Tensor]) -> Iterator[Comparison]:
        """What each head adds: its ``z`` and the port's own ``W_O``."""
        import torch

        for layer in self.context.scope.layers:
            z = shown.get(f"blocks.{layer}.attn.z")
            if z is None:
                yield structure(f"blocks.{layer}.attn.z", "is not shown: no heads' parts", PROMPT)
                continue
            w_o: Any = None
            with self.check.port("W_O of a block", f"blocks.{layer}.attn.z"):
                w_o = self.context.subject.attention(layer).W_O
            if w_o is not None:
                parts = torch.einsum("phe,hem->phm", z[0], w_o)
                yield from self.head_parts(layer, parts, "z @ W_O")
