"""What a port holds between two runs, so that what a run leaves behind is seen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.checks.base import structure
from conformance.records import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from conformance.implementations.lens_model import LensModel

#: Module dictionaries of torch that a hook is registered in.
_HOOK_STORES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class State:
    """Everything of a port that outlives a run.

    Attributes:
        tensors: parameter or buffer -> hash of its bits, dtype and shape.
        gradients: parameters with a stored gradient.
        frozen: parameters that record none.
        training: modules in training mode.
        lens_hooks: hook point -> hooks of a user's that are on it.
        configuration: plain values of the port's ``cfg``, in text.
    """

    tensors: Mapping[str, str]
    gradients: frozenset[str]
    frozen: frozenset[str]
    training: frozenset[str]
    lens_hooks: Mapping[str, int]
    configuration: Mapping[str, str]

    @classmethod
    def of(cls, subject: LensModel) -> State:
        model = subject.model
        modules = _by_component(_modules(model), subject)
        held: dict[str, Any] = {}
        for name, module in modules.items():
            for part, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    held[f"{name}.{part}".removeprefix(".")] = tensor
        hashes: dict[int, str] = {}
        for tensor in held.values():
            if id(tensor) not in hashes:
                hashes[id(tensor)] = _hash(tensor)
        parameters = {n: t for n, t in held.items() if t.is_floating_point()}
        return cls(
            tensors={name: hashes[id(tensor)] for name, tensor in held.items()},
            gradients=frozenset(n for n, t in parameters.items() if t.grad is not None),
            frozen=frozenset(n for n, t in parameters.items() if not t.requires_grad),
            training=frozenset(n for n, m in modules.items() if m.training),
            lens_hooks={
                name: sum(not h.is_permanent for h in (*point.fwd_hooks, *point.bwd_hooks))
                for name, point in model.hook_dict.items()
            },
            configuration=_configuration(model.cfg),
        )

    def changed_since(self, before: State, when: str) -> Iterator[Comparison]:
        """One comparison for each kind of state, and one for each thing that changed."""
        yield from unequal(before.tensors, self.tensors, f"changed {when}")
        yield from _same_members(before.gradients, self.gradients, f"stored gradient {when}")
        yield from _same_members(before.frozen, self.frozen, f"requires_grad {when}")
        yield from unequal(before.configuration, self.configuration, f"cfg changed {when}")

    def at_rest(self) -> Iterator[Comparison]:
        """Nothing trains, and no hook of a user's is left."""
        yield from _same_members(frozenset(), self.training, "is in training mode")
        left = frozenset(name for name, count in self.lens_hooks.items() if count)
        yield from _same_members(frozenset(), left, "a hook was left on it")


#: Where transformers has the hooks that it installs the first time an output is asked for.
_LAZILY = "transformers.utils.output_capturing"


def hooks_of(subject: LensModel) -> dict[str, int]:
    """Module -> number of hooks registered with torch, without those that transformers installs
    for good when attentions or hidden states are first asked for: they do nothing by themselves."""
    return {
        name: sum(
            getattr(hook, "__module__", "") != _LAZILY
            for store in _HOOK_STORES
            for hook in getattr(module, store).values()
        )
        for name, module in _modules(subject.model).items()
    }


def _modules(model: Any) -> dict[str, torch.nn.Module]:
    """Every module once, under the name that its users know it by.

    A bridge keeps its HuggingFace model apart, and its own modules inside that one, too: there a
    module of two stacks may have a shorter name, which users do not know.
    """

    def rank(name: str) -> tuple[bool, int]:
        return not name.startswith(_STACKS) or "_original_component" in name, len(name)

    names: dict[int, str] = {}
    modules: dict[int, torch.nn.Module] = {}
    for root in (model, getattr(model, "original_model", model)):
        for name, module in root.named_modules(remove_duplicate=False):
            if rank(name) < rank(names.setdefault(id(module), name)):
                names[id(module)] = name
            modules[id(module)] = module
    return {names[key]: module for key, module in modules.items()}


#: What a bridge calls the blocks of two stacks.
_STACKS = ("encoder_blocks.", "decoder_blocks.")


def _by_component(
    modules: Mapping[str, torch.nn.Module], subject: LensModel
) -> dict[str, torch.nn.Module]:
    """Modules of two stacks by the names that sites have: layers of both are counted together."""
    if not subject.family.encoder:
        return dict(modules)
    known = {id(module): name for name, module in subject.components().items()}

    def told(name: str) -> str:
        above, _, rest = name, "", ""
        while above:
            found = known.get(id(modules.get(above)))
            if found is not None:
                return f"{found}.{rest}" if rest else found
            above, _, last = above.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
        return name

    return {told(name): module for name, module in modules.items()}


def _hash(tensor: torch.Tensor) -> str:
    import torch

    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    with torch.no_grad():
        data = tensor.detach().contiguous().reshape(-1)
        if data.numel():
            digest.update(data.view(torch.uint8).numpy())  # type: ignore[arg-type] # a buffer, as it is
    return digest.hexdigest()


def _configuration(cfg: Any) -> dict[str, str]:
    return {name: repr(value) for name, value in vars(cfg).items() if isinstance(value, _PLAIN)}


def unequal(
    before: Mapping[str, object], after: Mapping[str, object], what: str
) -> Iterator[Comparison]:
    """One comparison for all, and a failure for each name whose value differs."""
    changed = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    yield _counted(len(before), changed, what)
    for name in changed:
        told = f"{what}: {before.get(name, 'absent')} before, {after.get(name, 'absent')} now"
        yield structure(name, told)


def _same_members(before: frozenset[str], after: frozenset[str], what: str) -> Iterator[Comparison]:
    changed = sorted(before ^ after)
    yield _counted(len(after), changed, what)
    for name in changed:
        yield structure(name, f"{what}: {name in after}; before: {name in before}")


def _counted(among: int, changed: list[str], what: str) -> Comparison:
    return Comparison(
        judgement="exact",
        site=None,
        prompt=None,
        measured=float(len(changed)),
        allowed=0.0,
        ok=not changed,
        bound="nothing that a port holds changes by use",
        note=f"{what}: {len(changed)} of {among}",
    )
