"""How a fault gets into a loaded subject, and out again: nothing here outlives its context.

A fault is put where the port computes: a parameter, an attribute, a call's arguments, the value
that passes a hook point, or a torch call inside one layer's attention. The library's own hook
machinery is not used, so that a fault does not depend on what is under test.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.overrides import TorchFunctionMode

from conformance.errors import ImplementationError
from conformance.implementations.base import first_tensor, tensor_input

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel

Change = Callable[[torch.Tensor], torch.Tensor]

_PRODUCTS = frozenset(
    {torch.matmul, torch.bmm, torch.baddbmm}
    | {torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.Tensor.baddbmm}
)
_SOFTMAXES = frozenset({torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax})


class Box:
    """What was seen last."""

    value: torch.Tensor | None = None

    def get(self) -> torch.Tensor:
        assert self.value is not None, "nothing was seen yet"
        return self.value


# --- places -----------------------------------------------------------------------------------


def exposed(subject: LensModel, site: str) -> bool:
    """Whether the port shows this site, rightly, when nothing is wrong with it."""
    if site.endswith("attn.scores") and delegates(subject):
        return False
    name = subject.expected_hooks()[0].get(site)
    return name is not None and (site in subject.module_sites() or name in _hooks(subject.model))


#: The names of a model's hooks: a bridge makes its table anew each time it is asked.
_HOOKS: weakref.WeakKeyDictionary[torch.nn.Module, frozenset[str]] = weakref.WeakKeyDictionary()


def _hooks(model: torch.nn.Module) -> frozenset[str]:
    if model not in _HOOKS:
        _HOOKS[model] = frozenset(cast("dict[str, object]", model.hook_dict))
    return _HOOKS[model]


#: Classes of TransformerLens whose hooks on scores and pattern see what HuggingFace returns.
_DELEGATING = frozenset({"AttentionBridge", "_JetMoeAttentionBridge"})


def delegates(subject: LensModel) -> bool:
    """Whether attention is left to HuggingFace's module: scores and pattern are not on the way."""
    blocks = (block(subject, layer) for layer in range(subject.dims.n_layers))
    return any(type(getattr(b, "attn", None)).__name__ in _DELEGATING for b in blocks)


def acts(subject: LensModel, site: str) -> bool:
    """Whether what a hook makes of this site reaches the logits, when nothing is wrong."""
    off_path = site.endswith("attn.pattern") and delegates(subject)
    return exposed(subject, site) and site in subject.editable() and not off_path


def point(subject: LensModel, site: str) -> torch.nn.Module:
    """The module whose output is the site's value, on its way to what follows."""
    module = subject.module_sites().get(site)
    if module is not None:
        return module
    name = subject.expected_hooks()[0].get(site)
    known = subject.model.hook_dict
    if name is None or name not in known:
        raise ImplementationError(f"{subject.name} has no hook for {site}", "ask exposed() first")
    found: torch.nn.Module = known[name]
    return found


def forks(subject: LensModel, layer: int) -> bool:
    """Whether each head can be given a residual stream of its own, before the norm."""
    seen: list[torch.Tensor] = []

    def look(tensor: torch.Tensor, hook: Any) -> None:
        seen.append(tensor)

    hooks = [(f"blocks.{layer}.{name}", look) for name in ("hook_resid_pre", "hook_q_input")]
    tokens = torch.zeros(1, 2, dtype=torch.long)
    refusals = (AttributeError, ValueError, NotImplementedError, AssertionError)
    with contextlib.suppress(*refusals), contextlib.ExitStack() as stack:
        subject.model.set_use_split_qkv_input(True)
        stack.callback(subject.model.set_use_split_qkv_input, False)
        with subject.session():
            subject.model.run_with_hooks(tokens, fwd_hooks=hooks)
    return len(seen) == len(hooks) and bool((seen[1] == seen[0][:, :, None]).all())


def block(subject: LensModel, layer: int) -> Any:
    """A layer's module, whichever stack it is in."""
    return subject.components()[f"blocks.{layer}"]


def named(subject: LensModel) -> dict[str, torch.Tensor]:
    """The port's weights by TransformerLens's names; none where it cannot tell them.

    ``tl_parameters`` of a bridge of two stacks raises (docs/findings/125), and others' do.
    """
    with contextlib.suppress(Exception):
        return subject.named_weights()
    return {}


def attention(subject: LensModel, layer: int) -> Any:
    """The module that computes attention: the bridge's own, or HookedTransformer's.

    None in a block that has none.
    """
    own = getattr(block(subject, layer), "attn", None)
    return own if own is not None else subject.components().get(f"blocks.{layer}.attn")


def attends(subject: LensModel) -> bool:
    """Whether the layer that most faults are in has attention."""
    return attention(subject, 1) is not None


def mlp(subject: LensModel, layer: int) -> Any:
    """The module that computes the MLP; None in a block that has none."""
    return getattr(block(subject, layer), "mlp", None)


def original(module: Any) -> Any:
    """The HuggingFace module inside a bridge's; another module itself."""
    return getattr(module, "original_component", None) or module


# --- changes ----------------------------------------------------------------------------------


@contextlib.contextmanager
def edited(subject: LensModel, site: str, change: Change) -> Iterator[None]:
    """Replace the value at a site; everything after it sees the change.

    Args:
        change: receives and returns the site's value as the library's users see it.
    """

    def hook(module: Any, _: Any, output: Any) -> Any:
        conversion = getattr(module, "hook_conversion", None)
        value = first_tensor(output)
        shown = value if conversion is None else conversion.convert(value)
        result = change(shown)
        if conversion is not None:
            result = conversion.revert(result)
        result = result.reshape(value.shape)
        return result if isinstance(output, torch.Tensor) else (result, *output[1:])

    where = point(subject, site)
    with contextlib.closing(_Handle(where.register_forward_hook(hook))), _in_use(where):
        yield


@contextlib.contextmanager
def _in_use(where: torch.nn.Module) -> Iterator[None]:
    """A hook point of a branch that a multiplier scales is called only if it says it has hooks."""
    if not hasattr(where, "has_hooks"):
        yield
        return
    with attribute(where, "has_hooks", lambda **_: True):
        yield


def editing(site: str, change: Change) -> Callable[[LensModel], AbstractContextManager[None]]:
    """:func:`edited`, for any subject."""
    return lambda subject: edited(subject, site, change)


class _Handle:
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def close(self) -> None:
        self._handle.remove()


@contextlib.contextmanager
def watched(subject: LensModel, site: str) -> Iterator[Box]:
    """The site's value of the pass in progress."""
    box = Box()

    def keep(value: torch.Tensor) -> torch.Tensor:
        box.value = value
        return value

    with edited(subject, site, keep):
        yield box


@contextlib.contextmanager
def watched_input(module: torch.nn.Module) -> Iterator[Box]:
    """What the module was last given."""
    box = Box()

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        box.value = tensor_input(args, kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield box
    finally:
        handle.remove()


@contextlib.contextmanager
def called_with(
    module: torch.nn.Module,
    change: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]],
) -> Iterator[None]:
    """Change the arguments that a module is called with."""
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: change(args, kwargs), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def returning(module: torch.nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Change what a module returns."""
    handle = module.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        handle.remove()


_MISSING = object()


@contextlib.contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute; a module's parameter may be set to None."""
    if isinstance(owner, torch.nn.Module) and name in owner._parameters:
        before = owner._parameters[name]
        owner._parameters[name] = value
        try:
            yield
        finally:
            owner._parameters[name] = before
        return
    own = vars(owner).get(name, _MISSING) if hasattr(owner, "__dict__") else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextlib.contextmanager
def overwritten(tensor: torch.Tensor, change: Change) -> Iterator[None]:
    """Change a parameter or buffer in place, and put its bits back afterwards."""
    before = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(change(before.clone()))
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(before)


def replaced_by(value: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A change to what ``value`` is now."""
    kept = value.detach().clone()
    return lambda _: kept


@contextlib.contextmanager
def during(subject: LensModel, enter: Callable[[], Any]) -> Iterator[None]:
    """Enter a context around every forward pass of the subject."""
    subject.extra.append(enter)
    try:
        yield
    finally:
        subject.extra.remove(enter)


class AttentionMode(TorchFunctionMode):
    """Sees the torch calls of one layer's attention."""

    def __init__(
        self,
        scores: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
        products: Callable[[int, Any, Any], tuple[Any, Any]] | None = None,
        softmax: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._scores, self._products, self._softmax_fn = scores, products, softmax
        self.active = False
        #: Whether a product is attention's own: an indexer, which chooses its keys, makes others.
        self.own: Callable[[torch.Tensor], bool] = lambda first: True
        self._seen: list[torch.Tensor] = []
        self._count = 0

    def start(self, *_: Any) -> None:
        self.active, self._count = True, 0
        self._seen.clear()

    def stop(self, *_: Any) -> None:
        self.active = False

    def raw(self, scores: torch.Tensor) -> torch.Tensor | None:
        """The query-key products of these scores, before scale, mask and cap.

        They are the last products of that size.
        """
        return next((t for t in reversed(self._seen) if t.numel() == scores.numel()), None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.active:
            return func(*args, **kwargs)
        named = {"batch1", "batch2"} <= kwargs.keys()  # of baddbmm, as Bloom calls it
        if func in _PRODUCTS and (named or len(args) >= 2):
            first, second = (kwargs["batch1"], kwargs["batch2"]) if named else args[-2:]
            if first.ndim >= 3 and second.ndim >= 3 and self.own(first):
                if self._products is not None:
                    given = self._products(self._count, first, second)
                    if named:
                        kwargs = {**kwargs, "batch1": given[0], "batch2": given[1]}
                    else:
                        args = (*args[:-2], *given)
                self._count += 1
                result = func(*args, **kwargs)
                if self._products is None and self._softmax_fn is None:
                    self._seen.append(torch.matmul(first, second))
                return result
        if func in _SOFTMAXES and (args[0] if args else kwargs["input"]).ndim >= 3:
            x = args[0] if args else kwargs.pop("input")
            rest = args[1:]
            if self._scores is not None:
                x = self._scores(x, self.raw(x))
            self.active = False
            if self._softmax_fn is not None:
                return self._softmax_fn(x)
            return func(x, *rest, **kwargs)
        return func(*args, **kwargs)


@contextlib.contextmanager
def attention_calls(subject: LensModel, layer: int, mode: AttentionMode) -> Iterator[AttentionMode]:
    """Let ``mode`` see one layer's attention."""
    module, heads = attention(subject, layer), subject.dims.n_heads
    if subject.family.of(layer).indexed:
        mode.own = lambda first: first.ndim == 4 and first.shape[1] == heads
    with contextlib.ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(mode.start).remove)
        stack.callback(module.register_forward_hook(mode.stop).remove)
        stack.enter_context(during(subject, lambda: mode))
        yield mode


@contextlib.contextmanager
def scores_changed(
    subject: LensModel,
    layer: int,
    change: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
) -> Iterator[None]:
    """Change the scores that enter the softmax, given them and the bare query-key products."""
    if delegates(subject):
        with attention_calls(subject, layer, AttentionMode(scores=change)):
            yield
        return
    with (
        attention_calls(subject, layer, AttentionMode()) as mode,
        edited(subject, f"blocks.{layer}.attn.scores", lambda s: change(s, mode.raw(s))),
    ):
        yield
