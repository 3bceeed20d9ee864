"""The library's lenses, through its own functions: logit lens, decompositions, attribution.

All of it is compared with the reference: its trace, its head, its weights. Norms are those of the
checkpoint (nothing is folded), so that direct logit attribution is what the library defines:
scaled components times columns of ``W_U``; with the norm's weight put in, they add up to the
logit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from conformance.checks.base import Check, Context, agree, structure
from conformance.checks.circuits import circuits
from conformance.checks.readings import Reading
from conformance.checks.stack_lens import StackLens
from conformance.experiments.lens import PROMPT, components, cut, pair, projection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from conformance.records import Comparison


class Lens(Check):
    """What people read off a cache is what the reference has there."""

    name: ClassVar[str] = "lens"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        self.metrics.update(context.scope.said())
        prompt = next((p for p in context.reference.prompts if p.name == PROMPT), None)
        if prompt is None:
            self.not_applicable(self.name, f"the prompt {PROMPT!r} is not among the model's")
            return
        fam = context.reference.family
        prompt = cut(context.scope, prompt, fam)
        kind = StackLens if fam.encoder else _Lens
        work = kind(self, context, prompt, context.experiment(self.name))
        with context.subject.session():
            yield from work.all()


_NORMED_SUMS = "norms stand in the residual stream: it is no sum of parts"
_SCALED_SUMS = "each block multiplies the whole residual stream: it is no sum of parts"
_NOT_LINEAR = "what lies between the final norm and the unembedding is not linear"


class _Lens(Reading):
    """One subject's lenses on one prompt. Called inside the subject's session."""

    def all(self) -> Iterator[Comparison]:
        with self.check.port("run_with_cache"):
            self.cache = self.model.run_with_cache(self.prompt.tokens)[1]
        if self.cache is not None:
            for lens in self._lenses():
                with self.check.port(lens.__name__):
                    yield from list(lens())
        if self.fam.regular:
            yield from self.results_hooked()
            yield from circuits(self.check, self.context, self.made)

    def _lenses(self) -> Iterator[Callable[[], Iterator[Comparison]]]:
        """Those that mean something for this architecture; why the others do not."""
        yield self.accumulated
        if self.fam.transform is not None:
            self.check.not_applicable("logit lens", f"a transform of its own: {self.fam.transform}")
        elif self.fam.head is None:
            yield self.logit_lens
        else:
            self.check.not_applicable("logit lens", _NOT_LINEAR)
        if not self.fam.summed:
            reason = _NORMED_SUMS if self.fam.post_norm else _SCALED_SUMS
            self.check.not_applicable("decompose_resid", reason)
        elif self.fam.everywhere("attn_out") and (
            self.fam.attention_only or self.fam.everywhere("mlp_out")
        ):
            yield self.decomposed
        else:
            reason = "not every layer adds attention and an MLP to the residual stream"
            self.check.not_applicable("decompose_resid", reason)
        if self.fam.regular:
            yield self.head_results
            yield self.neuron_results
        else:
            reason = "not every layer has heads with weights of their own, and an MLP"
            self.check.not_applicable("results of heads and neurons, circuits", reason)

    # --- against the trace ---

    def accumulated(self) -> Iterator[Comparison]:
        """Every stream of ``accumulated_resid`` is its site."""
        hidden = self.context.subject.expected_hooks()[1]
        mid = self.fam.everywhere("resid_mid") and "resid_mid" not in hidden
        stack, labels = self.cache.accumulated_resid(incl_mid=mid, return_labels=True)
        kinds = ("pre", "mid") if mid else ("pre",)
        due = {f"{i}_{k}": f"blocks.{i}.resid_{k}" for i in range(self.last + 1) for k in kinds}
        due["final_post"] = f"blocks.{self.last}.resid_post"
        yield from self._labelled("accumulated_resid", due, stack, labels)

    def decomposed(self) -> Iterator[Comparison]:
        """``decompose_resid`` gives the parts; they add up to the last stream; attribution."""
        stack, labels = self.cache.decompose_resid(return_labels=True)
        sites = components(self.last + 1, self.fam)
        due = {s.replace("blocks.", "").replace(".", "_"): s for s in sites}
        yield from self._labelled("decompose_resid", due, stack, labels)
        right, wrong = pair(self.prompt)
        told = [label for label in due if label in labels]
        if not told:
            return
        parts = stack[[labels.index(label) for label in told]]
        found = self.cache.logit_attrs(parts, right, wrong)
        yield agree(
            self.made,
            "attributions",
            found[:, 0],
            truth=self.made["attributions"][[list(due).index(label) for label in told]],
            site="logits",
            on=PROMPT,
            note=f"logit_attrs of tokens {right} and {wrong}, [component, pos]",
            row_dims=2,
        )
        if list(labels) != list(due):
            return
        last = f"blocks.{self.last}.resid_post"
        yield self.as_site(last, stack.sum(0), "sum of decompose_resid")
        scaled = self.cache.apply_ln_to_stack(stack, layer=-1).sum(0)
        weights = self.norm()
        normed = scaled * weights[0] + weights[1]
        if self.fam.ln_final:
            yield self.as_site("ln_final", normed, "sum of the parts, norm's scale frozen")
        if self.fam.head is not None:
            self.check.not_applicable("attributions to logits", _NOT_LINEAR)
            return
        w_u, b_u = self.head()
        logits = normed[0] @ w_u[:, [right, wrong]] + b_u[[right, wrong]]
        for what, by in (("the logits", (1.0, 0.0)), ("the logit difference", (1.0, -1.0))):
            mix = logits.new_tensor([[by[0], by[1]], [0.0, 1.0 if by[1] == 0.0 else 0.0]]).T
            yield agree(
                self.made,
                "unembedded",
                logits @ mix,
                truth=self.made["unembedded"] @ mix,
                site="logits",
                on=PROMPT,
                note=f"attributions over all parts make {what}",
                row_dims=2,
            )

    def _labelled(
        self, what: str, due: dict[str, str], stack: torch.Tensor, labels: list[str]
    ) -> Iterator[Comparison]:
        for label in due:
            if label not in labels:
                yield structure(due[label], f"{what} has no {label!r}", PROMPT)
        for label in labels:
            if label not in due:
                site = label if label in ("embed", "pos_embed") else None
                yield structure(site, f"{what} has {label!r}, which is no part", PROMPT)
        for label, value in zip(labels, stack, strict=True):
            if label in due:
                yield self.as_site(due[label], value, f"{what}: {label}")

    def logit_lens(self) -> Iterator[Comparison]:
        """Every stream through the final norm and the head, the last one being the logits."""
        normed = self.cache.accumulated_resid(apply_ln=True)
        recipe = self.capped(self.model.unembed(normed.flatten(0, 1)))
        yield from self.lens("unembed(accumulated_resid)", recipe.unflatten(0, normed.shape[:2]))
        if hasattr(self.cache, "logit_lens"):  # since 4.0
            yield from self.lens("logit_lens", self.cache.logit_lens(positions=None).values)

    # --- heads and neurons ---

    def head_results(self) -> Iterator[Comparison]:
        """``stack_head_results`` gives each head's part of attention's output."""
        stack, labels = self.cache.stack_head_results(return_labels=True)
        heads, layers = self.dims.n_heads, self.last + 1
        if list(labels) != [f"L{i}H{h}" for i in range(layers) for h in range(heads)]:
            yield structure(None, f"stack_head_results: labels {labels[:4]}...", PROMPT)
            return
        for layer in self.context.scope.layers:
            part = stack[layer * heads : (layer + 1) * heads, 0].transpose(0, 1)
            yield from self.head_parts(layer, part, "stack_head_results")

    def results_hooked(self) -> Iterator[Comparison]:
        """``hook_result`` shows the same, where the port can be told to compute it."""
        cache: Any = None
        try:
            self.model.set_use_attn_result(True)
        except (NotImplementedError, ValueError) as error:
            self.check.not_applicable("hook_result", f"the port cannot: {error}")
            return
        try:
            with self.check.port("run_with_cache with use_attn_result"):
                logits, cache = self.model.run_with_cache(
                    self.prompt.tokens, names_filter=lambda name: name.endswith("attn.hook_result")
                )
        finally:
            self.model.set_use_attn_result(False)
        if cache is None:
            return
        yield self.as_site("logits", logits, "with use_attn_result")
        for layer in self.context.scope.layers:
            name = f"blocks.{layer}.attn.hook_result"
            if name not in cache:
                yield structure(self.out(layer, "attn"), f"{name} never fired", PROMPT)
                continue
            yield from self.head_parts(layer, cache[name][0], "hook_result")

    def neuron_results(self) -> Iterator[Comparison]:
        """``get_neuron_results`` and ``stack_neuron_results``: each neuron's part of the MLP's."""
        if self.fam.attention_only:
            self.check.not_applicable("neuron results", "blocks have no MLP")
            return
        if self.fam.moe and not self.fam.has_neurons:
            reason = "neurons live inside experts, each on its own tokens"
            self.check.not_applicable("neuron results", reason)
            return
        basis = projection(self.dims.d_model)
        for layer in self.context.scope.layers:
            parts = self.cache.get_neuron_results(layer)[0]
            site = self.out(layer, "mlp")
            yield agree(
                self.made,
                f"neurons.{layer}",
                parts @ basis,
                site=site,
                on=PROMPT,
                row_dims=2,
                note="get_neuron_results, projected",
            )
            whole = parts.sum(-2)[None] + self.bias(f"blocks.{layer}.mlp.b_out")
            yield self.as_site(site, whole, "get_neuron_results: sum and bias")
        stack, labels = self.cache.stack_neuron_results(-1, pos_slice=-1, return_labels=True)
        d_mlp = self.made[f"neurons.{self.last}"].shape[1]
        if list(labels) != [f"L{i}N{n}" for i in range(self.last + 1) for n in range(d_mlp)]:
            note = (
                f"stack_neuron_results: {len(labels)} labels {labels[0]} to {labels[-1]} of "
                f"{len(stack)} neurons, expected L0N0 to L{self.last}N{d_mlp - 1}"
            )
            yield structure("blocks.0.mlp_out", note, PROMPT)
        for layer in self.context.scope.layers:
            part = stack[layer * d_mlp : (layer + 1) * d_mlp, 0] @ basis
            yield agree(
                self.made,
                f"neurons.{layer}",
                part,
                truth=self.made[f"neurons.{layer}"][-1],
                site=self.out(layer, "mlp"),
                on=PROMPT,
                row_dims=2,
                note="stack_neuron_results at the last position, projected",
            )
