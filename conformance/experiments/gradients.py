"""Gradients of the mean next-token loss, as autograd gives them on the reference."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from conformance.experiments.base import Experiment
from conformance.experiments.rows import WIDTH, gaussian, prompt_of
from conformance.sites import parse
from conformance.weights import canonical, split_fused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from conformance.experiments.base import Apparatus, Scope
    from conformance.families import Dims, Family
    from conformance.implementations.huggingface import HuggingFaceModel

#: The residual stream, between blocks. What a hook in the middle of one can do to it is a matter
#: of that hook, and left to other checks; the weights' gradients cover its inside.
STREAM = ("resid_pre", "resid_post")


def projected(gradient: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [..., WIDTH], by a seeded Gaussian; what is no wider is kept whole.

    Two gradients whose rows differ differ in each of these numbers with probability one, in
    proportion to the difference.
    """
    gradient = gradient.reshape(1) if gradient.ndim == 0 else gradient
    n = gradient.shape[-1]
    if gradient.ndim < 2 or n <= WIDTH:
        return gradient
    return gradient @ (gaussian(f"gradient {n}", n, WIDTH) / n**0.5)


def stream(scope: Scope) -> list[str]:
    """The embedding's output and the residual stream at the layers covered."""
    return ["embed", *(f"blocks.{layer}.{kind}" for layer in scope.layers for kind in STREAM)]


def probing(
    probes: dict[str, torch.Tensor], sites: Sequence[str]
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Edits that add a zero to each site, and keep it in ``probes``: its gradient is the site's."""

    def edit(site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def add(value: torch.Tensor) -> torch.Tensor:
            probes[site] = value.detach().new_zeros(value.shape).requires_grad_()
            return value + probes[site]

        return add

    return {site: edit(site) for site in sites}


def loss_of(model: HuggingFaceModel, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token; a decoder beside an encoder is given the last one."""
    import torch

    if not model.family.encoder:
        logits, tokens = logits[:, :-1], tokens[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def at_sites(
    model: HuggingFaceModel, scope: Scope, sites: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Site -> gradient of the loss with respect to its value, laid out along its axes.

    A site to which nothing learned leads has none: a table of sinusoids.
    Parts of a fused projection are split from the gradient of the whole: autograd allows no
    change of one part in place.
    """
    import torch

    prompt = prompt_of(model.dims, scope)
    probes: dict[str, torch.Tensor] = {}
    fused, wholes = _fused(model, sites), dict[str, torch.Tensor]()
    with contextlib.ExitStack() as stack:
        for path in fused.values():

            def keep(_: Any, __: Any, output: torch.Tensor, path: str = path) -> None:
                wholes[path] = output

            handle = model.model.get_submodule(path).register_forward_hook(keep)
            stack.callback(handle.remove)
        probed = probing(probes, [site for site in sites if site not in fused])
        edits = {site: _where_learned(edit) for site, edit in probed.items()}
        logits = model.run(prompt, lambda *_: None, edits=edits, grad=True)
    values = {**probes, **wholes}
    with model.session(grad=True):
        gradients = torch.autograd.grad(
            loss_of(model, logits, prompt.tokens), list(values.values())
        )
    found = dict(zip(values, gradients, strict=True))
    parts = {path: _split(model, path, found.pop(path)) for path in wholes}
    return found | {site: parts[path][site.rpartition(".")[2]] for site, path in fused.items()}


def _where_learned(
    edit: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: edit(value) if value.requires_grad else value


def _fused(model: HuggingFaceModel, sites: Sequence[str]) -> dict[str, str]:
    """Site -> path of the fused projection that it is a part of."""
    fam = model.family
    found = {}
    for name in sites:
        site = parse(name)
        if fam.qkv and site.layer is not None and site.kind in ("attn.q", "attn.k", "attn.v"):
            found[name] = fam.at(fam.qkv, site.layer)
        if fam.gate_up and site.layer is not None and site.kind in ("mlp.pre", "mlp.pre_linear"):
            found[name] = fam.at(fam.gate_up, site.layer)
    return found


def _split(model: HuggingFaceModel, path: str, whole: torch.Tensor) -> dict[str, torch.Tensor]:
    fam = model.family
    if fam.qkv and path.endswith(fam.qkv):
        return dict(zip("qkv", split_fused(whole, fam, model.dims), strict=True))
    return dict(zip(("pre", "pre_linear"), whole.chunk(2, dim=-1), strict=True))


def of_weights(model: HuggingFaceModel, scope: Scope) -> dict[str, torch.Tensor]:
    """HuggingFace name of what is learned -> gradient of the loss; zero for an expert that no
    token uses."""
    import torch

    prompt = prompt_of(model.dims, scope)
    named = {n: p for n, p in model.model.named_parameters() if p.requires_grad}
    logits = model.run(prompt, lambda *_: None, grad=True)
    with model.session(grad=True):
        loss = loss_of(model, logits, prompt.tokens)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def entries(gradients: Mapping[str, torch.Tensor], fam: Family, d: Dims) -> dict[str, torch.Tensor]:
    """Canonical weight -> its gradient, projected, in one row: it is judged by its largest entry.

    Rearranging a weight is linear, so that of its gradient is the same. A tied weight's gradient
    is the sum over its uses, under the embedding's name: backpropagation ends there. A bias
    of keys shares a row with their weight: where queries and keys are not rotated a softmax does
    not see it, its gradient is nothing but roundoff, and has no scale of its own.

    Args:
        gradients: by the parameters' HuggingFace names.
    """
    import torch

    if fam.unembed_bias not in gradients:  # BART's is a buffer
        fam = replace(fam, unembed_bias=None)
    weights = canonical(gradients, fam, d)
    if weights["unembed.W_U"].source == weights["embed.W_E"].source:
        del weights["unembed.W_U"]
    found = {name: projected(weight.tensor).reshape(-1) for name, weight in weights.items()}
    for name in [n for n in found if n.endswith(".attn.b_K")]:
        weight = name.replace(".b_K", ".W_K")
        found[weight] = torch.cat([found[weight], found.pop(name)])
    return found


class Gradients(Experiment):
    """Results: ``loss``; ``weight/<canonical name>`` and ``site/<site>``, each in one row."""

    uses: ClassVar[tuple[str, ...]] = ("conformance.experiments.rows", "conformance.weights")

    def run(self, on: Apparatus) -> Iterator[tuple[str, torch.Tensor]]:
        model = on.model
        found = entries(of_weights(model, on.scope), model.family, model.dims)
        for name, gradient in found.items():
            yield f"weight/{name}", gradient
        sites = stream(on.scope)
        for site, gradient in at_sites(model, on.scope, sites).items():
            yield f"site/{site}", gradient.reshape(-1)
        prompt = prompt_of(model.dims, on.scope)
        logits = model.run(prompt, lambda *_: None)
        yield "loss", loss_of(model, logits, prompt.tokens)


EXPERIMENT = Gradients()
