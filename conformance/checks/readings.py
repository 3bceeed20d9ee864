"""What every lens is held against: the reference's trace, its head and its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.checks.base import Check, Context, agree, same, structure
from conformance.experiments.lens import PROMPT, projection

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from conformance.experiments.store import Stored
    from conformance.prompts import Prompt
    from conformance.records import Comparison


class Reading:
    """One subject's lenses on one prompt. Called inside the subject's session."""

    def __init__(self, check: Check, context: Context, prompt: Prompt, made: Stored) -> None:
        self.check, self.context, self.prompt, self.made = check, context, prompt, made
        self.model: Any = context.subject.model
        self.fam, self.dims = context.reference.family, context.reference.dims
        self.last = self.dims.n_layers - 1
        self.cache: Any = None

    def truth(self, site: str) -> torch.Tensor:
        """[batch, the prompt's positions, ...]: cut only where no position sees later ones."""
        return self.context.reference.truth(PROMPT, site)[:, : self.prompt.tokens.shape[1]]

    def as_site(self, site: str, value: torch.Tensor, note: str) -> Comparison:
        """A value that should be the reference's at a site."""
        truth = self.truth(site)
        spread = self.context.reference.spread(PROMPT, site)
        if value.ndim == truth.ndim and value.shape[0] == 1 != truth.shape[0]:
            value = value.expand(truth.shape)
        return same(truth, value, spread, site=site, on=PROMPT, note=note)

    def weights(self) -> Any:
        """The reference's, by TransformerLens's names."""
        from conformance.diagnose.evidence import Weights

        return Weights(self.context.reference)

    def norm(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Weight and bias of the reference's final norm."""
        weights = self.weights()
        w, b = weights.get("ln_final.w"), weights.get("ln_final.b")
        offset = 1.0 if self.fam.norm_offset else 0.0
        return 1.0 if w is None else w + offset, 0.0 if b is None else b

    def head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the reference's unembedding."""
        weights = self.weights()
        w_u = weights["unembed.W_U"]
        b_u = weights.get("unembed.b_U")
        return w_u, w_u.new_zeros(w_u.shape[1]) if b_u is None else b_u

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and cap, where the library's lens leaves them to its user."""
        import torch

        logits = logits * self.made.facts["scale"]
        cap = self.made.facts["cap"]
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def lens(self, what: str, values: torch.Tensor) -> Iterator[Comparison]:
        """``values`` [layer + 1, batch, pos, d_vocab], of the decoder's layers where there are two
        stacks."""
        yield self.as_site("logits", values[-1], f"{what} of the last stream")
        found, due = values[:, 0] @ projection(self.dims.d_vocab), self.made["lens"]
        if found.shape != due.shape:
            note = f"{what}: {tuple(found.shape)}, expected {tuple(due.shape)}"
            yield structure("logits", note, PROMPT)
            return
        for row, layer in enumerate(range(self.fam.encoder, self.fam.encoder + len(due))):
            yield agree(
                self.made,
                "lens",
                found[row],
                truth=due[row],
                site=f"blocks.{layer}.resid_pre" if layer <= self.last else "logits",
                on=PROMPT,
                note=f"{what}, projected",
            )

    def out(self, layer: int, branch: str) -> str:
        """The site that a branch's parts add up to: before a norm that follows it."""
        post = self.fam.ln1_post if branch == "attn" else self.fam.ln2_post
        return f"blocks.{layer}.{branch}_out" if post is None else f"blocks.{layer}.{branch}.out"

    def bias(self, name: str) -> Any:
        """What a branch adds beside its parts."""
        bias = self.weights().get(name)
        return 0.0 if bias is None else bias * self.fam.residual_multiplier

    def head_parts(self, layer: int, heads: torch.Tensor, what: str) -> Iterator[Comparison]:
        """``heads`` [pos, head, d_model]."""
        site = self.out(layer, "attn")
        yield agree(self.made, f"heads.{layer}", heads, site=site, on=PROMPT, row_dims=2, note=what)
        whole = heads.sum(-2)[None] + self.bias(f"blocks.{layer}.attn.b_O")
        yield self.as_site(site, whole, f"{what}: sum and bias")
