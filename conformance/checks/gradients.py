"""Gradients of the loss equal the reference's: for every weight, and along the residual stream.

The loss is the library's own. A port's parameters are functions of the checkpoint's (split,
transposed, copied, scaled, one added), so that their gradients are pulled back through these
functions, and compared with the reference's parameter by parameter. Names end in ``.grad`` and
come in the order of backpropagation: the first that is wrong is next to the cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from conformance.checks.base import Check, Context, agree
from conformance.checks.weights import renamed_modules, split_names
from conformance.experiments.gradients import entries, probing, stream
from conformance.experiments.rows import prompt_of
from conformance.weights import canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from conformance.experiments.store import Stored
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison

_ON = "sixteen, gradient of the loss"

#: Parts of a block in the order in which gradients reach them; what is longer is more precise.
_BACKWARDS = (
    "resid_post",
    "post_per_layer_input_norm.",
    "per_layer_projection.",
    "per_layer_input_gate.",
    "ln2_post.",
    "mlp.W_out",
    "mlp.b_out",
    "mlp.experts.",
    "mlp.",
    "ln2.",
    "resid_mid",
    "ln1_post.",
    "mixer",
    "",  # a parameter without a canonical name
    "attn.W_O",
    "attn.b_O",
    "attn.W_V",
    "attn.b_V",
    "attn.",
    "ln1.",
    "resid_pre",
)
#: The same where norms of the stream come after attention and the MLP.
_NORMS = {"resid_post": "ln2.", "resid_mid": "ln1."}
_AFTER_POST_NORM = tuple(
    part
    for name in _BACKWARDS
    if name not in _NORMS.values()
    for part in (name, *filter(None, [_NORMS.get(name)]))
)


class Gradients(Check):
    """The loss's gradients with respect to every weight, the embedding and the stream."""

    name: ClassVar[str] = "gradients"
    runs: ClassVar[bool] = True

    def exact(self, context: Context) -> Iterable[Comparison]:
        subject, scope = context.subject, context.scope
        self.metrics.update(scope.said())
        stored = context.experiment(self.name)
        prompt = prompt_of(context.reference.dims, scope)
        found: dict[str, torch.Tensor | None] = {}
        with self.port("the loss and its gradients"):
            loss, gradients = _of_parameters(subject, prompt)
            right = agree(stored, "loss", loss, site="logits", on="sixteen")
            yield right
            if not right.ok:
                return  # the gradients of another function tell nothing of backpropagation
            found |= _by_weight(context, gradients)
        with self.port("gradients through hooks that change nothing"):
            shown = [s for s in stream(scope) if s in subject.editable()]
            for site, gradient in _of_sites(subject, prompt, shown).items():
                found[f"site/{site}"] = gradient
        order = _AFTER_POST_NORM if subject.family.post_norm else _BACKWARDS
        for key in sorted(found, key=lambda key: _backwards(key, order)):
            yield _judged(stored, key, found[key])


def _of_parameters(
    subject: LensModel, prompt: Prompt
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """The loss as users ask for it; parameter's name in the port -> gradient."""
    import torch

    names = list(subject.raw_parameters())
    parameters = list(subject.model.parameters())
    assert len(names) == len(parameters), "a parameter has no name of its own"
    used = [i for i, p in enumerate(parameters) if p.requires_grad]
    with subject.session(grad=True):
        loss = subject.model(prompt.tokens, return_type="loss", **subject.loss_options(prompt))
        found = torch.autograd.grad(loss, [parameters[i] for i in used], allow_unused=True)
    gradients: dict[str, torch.Tensor | None] = dict.fromkeys(names)
    for index, gradient in zip(used, found, strict=True):
        gradients[names[index]] = gradient
    return loss.detach(), gradients


def _of_sites(
    subject: LensModel, prompt: Prompt, sites: list[str]
) -> dict[str, torch.Tensor | None]:
    import torch

    probes: dict[str, torch.Tensor] = {}
    _, loss = subject.run_with_loss(
        prompt, lambda *_: None, edits=probing(probes, sites), grad=True
    )
    with subject.session(grad=True):
        found = torch.autograd.grad(loss.mean(), list(probes.values()), allow_unused=True)
    return dict(zip(probes, found, strict=True))


def _by_weight(
    context: Context, gradients: Mapping[str, torch.Tensor | None]
) -> dict[str, torch.Tensor | None]:
    """``weight/<canonical name>`` -> gradient, pulled back to it; None where none arrived."""
    import torch

    subject = context.subject
    fam, d = subject.family, subject.dims
    leaves = {
        name: p.to(torch.float64, copy=True).requires_grad_()
        for name, p in context.reference.parameters().items()
    }
    outputs, arrived = [], []
    with torch.enable_grad():
        for name, value in _as_the_port_holds(subject, leaves).items():
            gradient = gradients.get(name)
            if gradient is not None and gradient.shape == value.shape:
                outputs.append(value)
                arrived.append(gradient)
    pulled = torch.autograd.grad(outputs, list(leaves.values()), arrived, allow_unused=True)
    reached = {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(leaves.items(), pulled, strict=True)
    }
    judged = context.experiment(Gradients.name)  # without what the model does not learn
    return {k: g for n, g in entries(reached, fam, d).items() if (k := f"weight/{n}") in judged}


def _as_the_port_holds(
    subject: LensModel, leaves: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The port's parameters as functions of the checkpoint's, by the port's names."""
    fam, d = subject.family, subject.dims
    expected = canonical(leaves, fam, d)
    if not subject.raw_is_separate:
        held = {name: weight.tensor for name, weight in subject.convention(expected).items()}
        table = subject.raw_parameters().get("pos_embed.W_pos")
        if table is not None and table.shape != held["pos_embed.W_pos"].shape:
            held["pos_embed.W_pos"] = expected["pos_embed.W_pos"].tensor
        return held
    parts, _ = split_names(expected, fam, d)
    renamed = renamed_modules(fam, d)
    found: dict[str, torch.Tensor] = {}
    for name in subject.raw_parameters():
        stem, _, what = name.rpartition(".")
        key = f"{renamed[stem]}.{what}" if stem in renamed else name
        if key in leaves:
            found[name] = leaves[key]
        elif name in parts:
            found[name] = parts[name]
    return found


def _judged(stored: Stored, key: str, gradient: torch.Tensor | None) -> Comparison:
    truth = stored[key]
    site = key.partition("/")[2] + ".grad"
    value = truth.new_zeros(truth.shape) if gradient is None else gradient.reshape(-1)
    detached = bool(truth.any()) and not bool(value.any())
    note = f"detached: no gradient; the reference's is up to {float(truth.abs().max()):.1e}"
    return agree(stored, key, value, site=site, on=_ON, note=note if detached else "")


def _backwards(key: str, order: Sequence[str] = _BACKWARDS) -> tuple[int, int, int]:
    """Sorts ``weight/...`` and ``site/...`` as backpropagation reaches them.

    Args:
        order: of the parts of a block.
    """
    name = key.partition("/")[2]
    if not name.startswith("blocks."):
        whole = (
            *("unembed.", "head.", "ln_final.", "embed_ln.", "embed", "pos_embed.", "embed."),
            "",  # a tower's
        )
        place = max((len(p), -i) for i, p in enumerate(whole) if name.startswith(p))
        return (0 if -place[1] < 3 else 2, 0, -place[1])
    _, layer, part = name.split(".", 2)
    rank = max((len(p), i) for i, p in enumerate(order) if part.startswith(p))[1]
    return (1, -int(layer), rank)
