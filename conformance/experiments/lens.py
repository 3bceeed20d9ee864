"""What a lens must show of the reference: its head on every layer, its parts, its circuits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from conformance import SEEDS
from conformance.experiments.base import Experiment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from conformance.experiments.base import Apparatus, Scope
    from conformance.families import Dims, Family
    from conformance.prompts import Prompt
    from conformance.weights import Weight

PROMPT = "sixteen"

#: Numbers kept of a vector: projections on seeded Gaussian directions, in which any difference
#: shows with probability one.
_KEPT = 16
_POWERS = (1, 2, 3)


def projection(size: int) -> torch.Tensor:
    """[size, 16], the same on either side."""
    import torch

    generator = torch.Generator().manual_seed(SEEDS["prompts"])
    return torch.randn(size, _KEPT, generator=generator, dtype=torch.float64)


def pair(prompt: Prompt) -> tuple[int, int]:
    """Two tokens whose logits are attributed: the first two different ones of the prompt."""
    first, *rest = prompt.tokens[0].tolist()
    return first, next((t for t in rest if t != first), first - 1)


def cut(scope: Scope, prompt: Prompt, fam: Family) -> Prompt:
    """As much of a prompt as the scope has; all of it where a token sees those after it, whose
    sites in the trace would not be those of a shorter prompt."""
    sees_all = fam.encoder or not fam.causal
    return prompt if sees_all else scope.cut(prompt)


def components(layers: int, fam: Family) -> list[str]:
    """The sites that add up to the last residual stream, in order."""
    kinds = ("attn_out", "mixer_out", "mlp_out", "per_layer_out")
    parts = [f"blocks.{i}.{k}" for i in range(layers) for k in kinds if k not in fam.absent(i)]
    return [*fam.embeds, *parts]


class Lens(Experiment):
    """Results:

    * ``lens`` [layer + 1, pos, 16]: projected logits of the residual stream before each layer and
      after the last, through HuggingFace's own head (the stream put in the place of the last). Of
      an encoder and a decoder the decoder's layers only, as ``unembedded`` and ``attributions``
      are not theirs at all.
    * ``unembedded`` [pos, 2]: what the unembedding gives for :func:`pair`, before scale and cap.
    * ``attributions`` [component, pos]: each of :func:`components`, centred where the final norm
      centres, over the scale of the norm, times the difference of the pair's unembeddings.
    * ``heads.{l}`` [pos, head, d_model]: what each head adds to attention's output.
    * ``neurons.{l}`` [pos, d_mlp, 16]: what each neuron adds to the MLP's output, projected.
    * ``QK``, ``OV`` [layer, head, 16]: x M y for seeded x and y; ``... singular`` [layer, head,
      d_head] values, ``... powers`` [layer, head, 3]: traces of powers of M over the largest
      singular value, which are sums of powers of its eigenvalues.
    """

    uses: ClassVar[tuple[str, ...]] = (
        "conformance.diagnose.facts",
        "conformance.families.base",
        "conformance.weights",
    )

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        from conformance.weights import canonical

        if PROMPT not in on.prompts:
            return
        model = on.model
        prompt = cut(on.scope, on.prompts[PROMPT], model.family)
        fam, d, config = model.family, model.dims, model.config
        weights = canonical(model.parameters(), fam, d)
        seen, unembedded = _watched(on, prompt)
        last = f"blocks.{d.n_layers - 1}.resid_post"
        first = fam.encoder
        streams = [*(seen[f"blocks.{i}.resid_pre"] for i in range(first, d.n_layers)), seen[last]]
        rows = torch.cat(streams)
        logits = model.run(
            type(prompt)(prompt.name, prompt.tokens.repeat(len(rows), 1)),
            lambda *_: None,
            edits={last: lambda _: rows},
        )
        yield "lens", logits @ projection(d.d_vocab)
        if not fam.encoder:
            right, wrong = pair(prompt)
            yield "unembedded", unembedded[0][:, [right, wrong]]
            with torch.no_grad(), model.session():
                w_u = weights["unembed.W_U"].tensor
                direction = w_u[:, right] - w_u[:, wrong]
                if fam.summed:
                    yield "attributions", _attributions(on, seen, config, direction.double())
        for layer in on.scope.layers if fam.regular else ():
            at = f"blocks.{layer}"
            w_o = weights[f"{at}.attn.W_O"].tensor.double() * fam.residual_multiplier
            yield f"heads.{layer}", torch.einsum("phe,hem->phm", seen[f"{at}.attn.z"][0], w_o)
            if f"{at}.mlp.post" in seen:
                w_out = weights[f"{at}.mlp.W_out"].tensor.double() * fam.residual_multiplier
                post = seen[f"{at}.mlp.post"][0]
                yield f"neurons.{layer}", post[..., None] * (w_out @ projection(d.d_model))
        if fam.regular:
            yield from _circuits(weights, d)

    def facts(self, on: Apparatus) -> dict[str, Any]:
        from conformance.diagnose import facts

        config = on.model.config
        cap = facts.first(config, "final_logit_softcapping", "logits_soft_cap")
        return {
            "scale": facts.logit_scale(config)[0] * facts.readout_scale(config),
            "cap": None if cap is None else float(cap),
            "centred": facts.norm(config, on.model.family).centred,
        }


def _watched(on: Apparatus, prompt: Prompt) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Every site, and the unembedding's own output [batch, pos, d_vocab]."""
    seen: dict[str, torch.Tensor] = {}
    shown: list[torch.Tensor] = []
    head = on.model.components()["unembed"]
    handle = head.register_forward_hook(lambda _, __, output: shown.append(output.clone()))
    try:
        on.model.run(prompt, lambda name, t: seen.update({name: t.clone()}))
    finally:
        handle.remove()
    return seen, shown[0]


def _attributions(
    on: Apparatus, seen: Mapping[str, torch.Tensor], config: Any, direction: torch.Tensor
) -> torch.Tensor:
    import torch

    from conformance.diagnose import facts

    fam, d = on.model.family, on.model.dims
    norm = facts.norm(config, fam)
    x = seen[f"blocks.{d.n_layers - 1}.resid_post"][0]
    parts = torch.stack([seen[s][0].expand(x.shape) for s in components(d.n_layers, fam)])
    if fam.ln_final is None:
        return parts @ direction
    if norm.centred:
        x, parts = (t - t.mean(-1, keepdim=True) for t in (x, parts))
    scale = (x.square().mean(-1) + norm.eps).sqrt()
    return (parts @ direction) / scale


def _circuits(weights: Mapping[str, Weight], d: Dims) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    def stacked(name: str) -> torch.Tensor:
        found = [weights[f"blocks.{i}.attn.{name}"].tensor.double() for i in range(d.n_layers)]
        whole = torch.stack(found)
        return whole.repeat_interleave(d.n_heads // whole.shape[1], dim=1)

    sides = projection(2 * d.d_model)
    left, right = sides[: d.d_model], sides[d.d_model :]
    pairs = {
        "QK": (stacked("W_Q"), stacked("W_K").transpose(-1, -2)),
        "OV": (stacked("W_V"), stacked("W_O")),
    }
    for name, (a, b) in pairs.items():
        yield name, ((left.T @ a).transpose(-1, -2) * (b @ right)).sum(-2)
        # The singular values of A B are those of the product of its factors' triangles.
        r_a = torch.linalg.qr(a).R
        r_b = torch.linalg.qr(b.transpose(-1, -2)).R
        singular = torch.linalg.svdvals(r_a @ r_b.transpose(-1, -2))
        yield f"{name} singular", singular
        yield f"{name} powers", power_traces(b @ a / singular[..., :1, None])


def power_traces(m: torch.Tensor) -> torch.Tensor:
    """Traces of M, M^2, M^3 [..., 3]: sums of powers of its eigenvalues."""
    import torch

    powers = [torch.linalg.matrix_power(m, k) for k in _POWERS]
    return torch.stack([p.diagonal(dim1=-2, dim2=-1).sum(-1) for p in powers], dim=-1)


def power_sums(eigenvalues: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """The same of eigenvalues [..., n] (complex), over ``largest`` [...]."""
    import torch

    scaled = eigenvalues / largest[..., None]
    return torch.stack([(scaled**k).sum(-1).real for k in _POWERS], dim=-1)


EXPERIMENT = Lens()
