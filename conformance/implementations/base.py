"""What every implementation offers to the engine, and the module hooks both sides share."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from conformance.errors import ImplementationError
from conformance.sites import KINDS, parse

if TYPE_CHECKING:
    from conformance.families import Dims, Family
    from conformance.prompts import Prompt

#: Called with a site's name and its value, laid out along the site's axes, as it appears.
OnSite = Callable[[str, torch.Tensor], None]

#: Component name (``blocks.3``, ``blocks.3.attn``, ``ln_final``, ...) -> the input to feed it
#: instead of its own; None leaves it alone.
Force = Callable[[str], "torch.Tensor | None"]

#: Site -> what to make of its value: laid out along the site's axes, whole batch at once. The
#: change is made where the site is computed, so that everything after it sees the change.
Edits = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]

#: Site kinds that cannot be edited, each with the reason.
UNEDITABLE: Mapping[str, str] = {
    "mlp.router_logits": "HuggingFace's router module turns its logits into weights itself",
}

#: Components of a block that isolation feeds separately, in order.
BLOCK_COMPONENTS: tuple[str, ...] = (
    *("ln_pre", "ln1", "attn", "mixer", "ln1_post", "ln_cross", "cross", "ln_cross_post"),
    *("ln2", "mlp", "ln2_post", "per_layer"),
)


class Implementation(Protocol):
    """A loaded model of either side."""

    family: Family
    dims: Dims
    dtype: torch.dtype

    def components(self) -> dict[str, torch.nn.Module]:
        """Component name -> module whose input is the component's input."""
        ...

    def run(
        self,
        prompt: Prompt,
        on_site: OnSite,
        *,
        force: Force | None = None,
        on_input: OnSite | None = None,
        edits: Edits | None = None,
        grad: bool = False,
    ) -> torch.Tensor:
        """One forward pass. Returns logits [batch, pos, d_vocab].

        Args:
            on_site: called for every site as it appears, ``logits`` excepted (returned).
            force: inputs to feed components instead of their own (teacher forcing).
            on_input: called with each component's input, before forcing.
            edits: changes to sites; ``on_site`` is shown what they made.
            grad: keep the graph, so that the logits and the sites shown can be differentiated.
        """
        ...


#: Names under which a component takes its input; attention may take it once for each of v, q, k,
#: and with positions added for the latter two.
_INPUT_NAMES = (
    "hidden_states",
    "input",
    "x",
    "residual",
    "value_input",
    "query_input",
    "key_input",
)


def replace_input(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    value: torch.Tensor,
    positions: torch.Tensor | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments with its hidden-state input replaced.

    Args:
        positions: what is added to it for queries and keys, where they are given apart.
    """
    if args and isinstance(args[0], torch.Tensor):
        return (value.reshape(args[0].shape), *args[1:]), kwargs
    found = {n: kwargs[n] for n in _INPUT_NAMES if isinstance(kwargs.get(n), torch.Tensor)}
    if not found:
        raise ImplementationError(
            f"no tensor input among {len(args)} positional and {sorted(kwargs)} keyword arguments",
            "teach conformance.implementations.base.replace_input this signature",
        )
    own = {
        n: value if positions is None or n == "value_input" else value + positions for n in found
    }
    return args, {**kwargs, **{n: own[n].reshape(t.shape) for n, t in found.items()}}


def tensor_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The call's hidden-state input, or None."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    return next((kwargs[n] for n in _INPUT_NAMES if isinstance(kwargs.get(n), torch.Tensor)), None)


def first_tensor(output: Any) -> torch.Tensor:
    """A module's main output: itself, or the first of its tuple."""
    return output if isinstance(output, torch.Tensor) else output[0]


def settled(model: Any) -> Any:
    """What a model does to its own weights before its first forward pass, done now.

    RWKV's halves those of every few layers for inference, and its stream between them: what is
    compared, and what must stay as it is, are the weights that compute.

    Args:
        model: a HuggingFace model in eval mode, wrapped or not; changed in place, and returned.
    """
    for module in model.modules():
        if hasattr(module, "_rescale_layers"):
            module._rescale_layers()
    return model


def stored_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers of numbers that a checkpoint holds, by name: no table that the config determines."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
        and buffer.is_floating_point()
        and name not in module._non_persistent_buffers_set
    }


def for_each_row(tensor: torch.Tensor, kind: str, prompt: Prompt) -> torch.Tensor:
    """What serves all rows of a batch (a table of positions), as a view with all of them.

    An edit can then tell rows apart.

    Args:
        tensor: a site of this kind, [batch, ...], [1, ...], or without the first dimension.
    """
    axes, (batch, pos) = KINDS[kind].axes, prompt.tokens.shape
    if axes[0] != "batch" or batch == 1:
        return tensor
    if axes[1] == "pos" and tensor.ndim == len(axes) - 1 and tensor.shape[0] == pos:
        tensor = tensor[None]
    return tensor.expand(batch, *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor


#: What a model with windows is told: which tokens see, and are seen by, all.
EVERYWHERE = "global_attention_mask"


def asked(fam: Family, prompt: Prompt) -> dict[str, torch.Tensor]:
    """What a model is given besides a prompt's own: which tokens see, and are seen by, all.

    Nothing that the prompt says itself.
    """
    if not fam.windowed or EVERYWHERE in prompt.extra:
        return {}
    everywhere = torch.zeros_like(prompt.tokens)
    everywhere[:, 0] = 1
    return {EVERYWHERE: everywhere}


def one_back(tokens: torch.Tensor, config: Any) -> torch.Tensor:
    """[batch, pos]: what a decoder is given so that it predicts ``tokens``, as HuggingFace shifts
    labels to the right.

    Args:
        config: the whole model's.
    """
    return torch.cat([torch.full_like(tokens[:, :1], starts_with(config)), tokens[:, :-1]], dim=1)


def starts_with(config: Any) -> int:
    """The token that a decoder is given first.

    Args:
        config: the whole model's.
    """
    for own in (config, config.get_text_config()):
        start: int | None = getattr(own, "decoder_start_token_id", None)
        if start is not None:
            return start
    return int(config.get_text_config().bos_token_id)


def decoded(prompt: Prompt, config: Any) -> torch.Tensor:
    """[batch, pos of the decoder]: what a decoder is given.

    Args:
        config: the whole model's.
    """
    return one_back(prompt.tokens, config) if prompt.decoder is None else prompt.decoder


def at_each(prompt: Prompt, logits: torch.Tensor) -> torch.Tensor:
    """A sequence's one row of logits [batch, d_vocab] at each of its positions."""
    return logits[:, None].expand(-1, prompt.tokens.shape[1], -1)


def shaped(emit: OnSite, prompt: Prompt, fam: Family | None = None) -> OnSite:
    """Give back batch and position to what a block flattened (OPT's MLP) or broadcast.

    Args:
        fam: whose encoder may have padded its input, which is cut off again.
    """
    batch, pos = prompt.tokens.shape
    encoder = fam.encoder if fam is not None and fam.windowed else 0

    def emit_shaped(name: str, tensor: torch.Tensor) -> None:
        site = parse(name)
        axes = site.axes
        if axes[:2] == ("batch", "pos"):
            if encoder and (site.layer is None or site.layer < encoder):
                tensor = tensor.narrow(tensor.ndim - len(axes) + 1, 0, pos)
            if tensor.ndim == len(axes) - 1:
                tensor = tensor.unflatten(0, (-1, pos))
            if tensor.shape[0] == 1 != batch:
                tensor = tensor.expand(batch, *tensor.shape[1:])
        elif axes[0] == "token" and tensor.ndim == 3:
            tensor = tensor.flatten(0, 1)
        emit(name, tensor)

    return emit_shaped


@contextlib.contextmanager
def hooked_inputs(
    modules: Mapping[str, torch.nn.Module],
    force: Force | None,
    on_input: OnSite | None,
    *,
    second: tuple[str, ...] = (),
    positions: Callable[[], torch.Tensor | None] = lambda: None,
) -> Iterator[None]:
    """Force and watch the inputs of components for the duration.

    Args:
        modules: component name -> module whose first tensor argument is its input.
        second: components that are the second call of their module, of two in a forward pass.
        positions: what a shortformer adds for queries and keys, in the pass that runs.
    """
    if force is None and on_input is None:
        yield
        return

    def make(name: str) -> Callable[..., Any]:
        calls = itertools.cycle((False, True) if name in second else (True,))

        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not next(calls):
                return None
            if on_input is not None:
                own = tensor_input(args, kwargs)
                if own is not None:
                    on_input(name, own)
            value = force(name) if force is not None else None
            added = positions() if name.endswith(".attn") else None
            return None if value is None else replace_input(args, kwargs, value, added)

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(make(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield
