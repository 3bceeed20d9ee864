"""A TransformerLens model, read through the hook names that people use.

A table says which hook shows which site, in which layout. Hooks that an architecture's port does
not have must be listed in ``NOT_EXPOSED`` with a reason; one that is missing without being listed
is a failure of the port, not of the harness.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from conformance.errors import ImplementationError
from conformance.implementations.base import (
    UNEDITABLE,
    Edits,
    Force,
    OnSite,
    asked,
    at_each,
    first_tensor,
    for_each_row,
    hooked_inputs,
    one_back,
    shaped,
)
from conformance.precision import promoted
from conformance.sites import BLOCK_KINDS, GLOBAL_KINDS, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from conformance.families import Dims, Family
    from conformance.prompts import Prompt
    from conformance.weights import Weight
#: Site kind -> hook name, for both generations; ``{l}`` is the layer.
HOOKS: Mapping[str, str] = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "resid_pre": "blocks.{l}.hook_resid_pre",
    "attn.q": "blocks.{l}.attn.hook_q",
    "attn.k": "blocks.{l}.attn.hook_k",
    "attn.v": "blocks.{l}.attn.hook_v",
    "attn.rot_q": "blocks.{l}.attn.hook_rot_q",
    "attn.rot_k": "blocks.{l}.attn.hook_rot_k",
    "attn.scores": "blocks.{l}.attn.hook_attn_scores",
    "attn.pattern": "blocks.{l}.attn.hook_pattern",
    "attn.z": "blocks.{l}.attn.hook_z",
    "attn_out": "blocks.{l}.hook_attn_out",
    "resid_mid": "blocks.{l}.hook_resid_mid",
    "mlp.pre": "blocks.{l}.mlp.hook_pre",
    "mlp.pre_linear": "blocks.{l}.mlp.hook_pre_linear",
    "mlp.post": "blocks.{l}.mlp.hook_post",
    "mlp_out": "blocks.{l}.hook_mlp_out",
    "resid_post": "blocks.{l}.hook_resid_post",
}

_JOINT = "the port computes rotated q and k inside a fused attention and shows neither"
_SPLIT_ROTARY = "the port leaves rotation to HuggingFace's own attention and shows neither"

_WHOLE = "the port wraps the module of each block whole and shows nothing inside"

_BLOCK = "the port wraps each block whole and shows nothing inside"

#: (subject class, architecture or "*", site kind) -> why its hook does not exist or never fires.
NOT_EXPOSED: Mapping[tuple[str, str, str], str] = {
    **{
        ("TransformerBridge", architecture, kind): reason
        for architecture, reason in (
            ("GPTNeoXForCausalLM", _JOINT),
            ("FalconForCausalLM", _JOINT),
            ("Phi3ForCausalLM", _JOINT),
            ("CodeGenForCausalLM", _JOINT),
            ("GPTJForCausalLM", _SPLIT_ROTARY),
            ("ModernBertDecoderForCausalLM", _SPLIT_ROTARY),
            ("NanoChatForCausalLM", _SPLIT_ROTARY),
            ("AfmoeForCausalLM", _SPLIT_ROTARY),
            ("LagunaForCausalLM", _SPLIT_ROTARY),
            ("Llama4ForCausalLM", _SPLIT_ROTARY),
            ("Llama4ForConditionalGeneration", _SPLIT_ROTARY),
            ("JetMoeForCausalLM", _SPLIT_ROTARY),
            ("OlmoHybridForCausalLM", _SPLIT_ROTARY),
            ("MuseGlimmerForConditionalGeneration", _SPLIT_ROTARY),
            ("Gemma4ForCausalLM", _SPLIT_ROTARY),
            ("Gemma4ForConditionalGeneration", _SPLIT_ROTARY),
            ("Gemma4UnifiedForConditionalGeneration", _SPLIT_ROTARY),
        )
        for kind in ("attn.rot_q", "attn.rot_k")
    },
    **{
        ("TransformerBridge", "MuseGlimmerForConditionalGeneration", f"attn.{part}_normed"): (
            "the port leaves the norm of queries and keys to HuggingFace's own attention"
        )
        for part in "qk"
    },
    **{
        ("TransformerBridge", "NemotronHForCausalLM", kind): _WHOLE
        for kind in (
            *("attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z"),
            *("mlp.pre", "mlp.post"),
        )
    },
    **{
        ("TransformerBridge", "RecurrentGemmaForCausalLM", kind): _BLOCK
        for kind in (
            *("ln1", "attn.q", "attn.k", "attn.v", "attn.rot_q", "attn.rot_k", "attn.scores"),
            *("attn.pattern", "attn.z", "attn_out", "mixer_out", "resid_mid", "ln2"),
            *("mlp.pre", "mlp.pre_linear", "mlp.post", "mlp_out"),
        )
    },
    **{
        ("HookedTransformer", "*", kind): "no hook between the norm and the rotation"
        for kind in ("attn.q_normed", "attn.k_normed")
    },
    ("TransformerBridge", "Gemma4ForCausalLM", "mlp.router_logits"): (
        "the port wraps the router whole and shows the softmax of its logits"
    ),
    ("HookedTransformer", "*", "mlp.router_logits"): (
        "only the router's weights after its softmax are hooked"
    ),
}

#: (subject class, architecture, path of a layer's mixer) -> why they show nothing inside.
WHOLE_LAYERS: Mapping[tuple[str, str, str], str] = {
    ("TransformerBridge", "Zamba2ForCausalLM", "mamba_decoder.mamba"): (
        "the port wraps layers with a shared block whole and shows nothing inside"
    ),
}
_OF_WHOLE = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class PortWeight:
    """A weight as a port should hold it; ``derived`` if one float operation made it."""

    tensor: torch.Tensor
    derived: bool = False


class LensModel(ABC):
    """A TransformerLens model of either generation, loaded without weight processing."""

    #: Name of the TransformerLens class, as it appears in reports and in NOT_EXPOSED.
    kind: str

    def __init__(self, model: Any, name: str, fam: Family, d: Dims, dtype: torch.dtype) -> None:
        self.model, self.name, self.family, self.dims, self.dtype = model, name, fam, d, dtype
        #: Sites whose hook shows something that is no tensor: what it is.
        self.odd: dict[str, str] = {}
        #: Entered around every forward pass, inside promotion (a fault's function mode, say).
        self.extra: list[Callable[[], AbstractContextManager[Any]]] = []

    @abstractmethod
    def hook_table(self) -> dict[str, str]:
        """Site kind -> hook name with ``{l}`` for the layer."""

    def hook(self, usual: str, kind: str, layer: int) -> str:
        """The name of the hook that shows a kind of site in a layer; ``usual``: the table's."""
        return usual.format(l=layer)

    @abstractmethod
    def layout(self, kind: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """How to bring this hook's tensor to the site's axes; None if it already has them."""

    @abstractmethod
    def components(self) -> dict[str, torch.nn.Module]:
        """Component name -> module whose input is the component's input."""

    @abstractmethod
    def process_weights(self, flags: Mapping[str, bool] | None = None) -> None:
        """Apply the library's weight processing, in place.

        Args:
            flags: which of its steps, by the library's names; None for its standard ones.
        """

    @abstractmethod
    def named_weights(self) -> dict[str, torch.Tensor]:
        """The weights by TransformerLens's names (``blocks.0.attn.W_Q``)."""

    def used_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the forward pass uses, by TransformerLens's names; after processing,
        too."""
        return self.named_weights()

    @abstractmethod
    def raw_parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter that the forward pass can use, by the port's own names."""

    def raw_buffers(self) -> dict[str, torch.Tensor]:
        """Buffers that a checkpoint holds, by the port's own names, where it has any."""
        return {}

    @abstractmethod
    def convention(self, expected: Mapping[str, Weight]) -> dict[str, PortWeight]:
        """The canonical weights as this generation names and stores them."""

    #: Whether the forward pass uses parameters other than :meth:`named_weights`.
    raw_is_separate: bool = False

    @property
    def scores_up_to_a_constant(self) -> bool:
        """Whether scores may differ from the reference's by a constant per query.

        The softmax does not see it: another origin of the alibi distances, say.
        """
        return False

    def expected_hooks(self) -> tuple[dict[str, str], dict[str, str]]:
        """Site name -> hook name for every site this architecture has; and why others are not
        exposed, by kind, or by name where other layers show such sites."""
        absent, table = self.family.absent(), self.hook_table()
        layers = range(self.dims.n_layers)
        missing = [self.family.absent(layer) for layer in layers]
        sites: dict[str, str] = {}
        hidden: dict[str, str] = {}
        for kind in (*GLOBAL_KINDS, *BLOCK_KINDS):
            if kind.name in absent or kind.name == "logits":
                continue
            reason = NOT_EXPOSED.get((self.kind, self.family.architecture, kind.name))
            reason = reason or NOT_EXPOSED.get((self.kind, "*", kind.name))
            if reason is not None:
                hidden[kind.name] = reason
            elif kind in GLOBAL_KINDS:
                sites[kind.name] = table[kind.name]
            else:
                for layer in layers:
                    if kind.name in missing[layer]:
                        continue
                    if kind.name not in _OF_WHOLE and (whole := self._whole(layer)):
                        hidden[f"blocks.{layer}.{kind.name}"] = whole
                    else:
                        name = self.hook(table[kind.name], kind.name, layer)
                        sites[f"blocks.{layer}.{kind.name}"] = name
        return sites, hidden

    def _whole(self, layer: int) -> str | None:
        """Why nothing inside this layer is shown, where others show something."""
        where = (self.kind, self.family.architecture, self.family.of(layer).mixer or "")
        return WHOLE_LAYERS.get(where)

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
        """See :class:`conformance.implementations.base.Implementation`.

        Edits go through the library's own hooks, as its users' do.

        Raises:
            ImplementationError: an edit of a site that no hook of the library shows.
        """
        logits, _ = self._run(prompt, on_site, force, on_input, "logits", edits or {}, grad)
        return logits

    def run_with_loss(
        self, prompt: Prompt, on_site: OnSite, *, edits: Edits | None = None, grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward pass: logits, and the library's own per-token loss [batch, pos - 1];
        [batch, pos] of an encoder and a decoder."""
        logits, loss = self._run(prompt, on_site, None, None, "both", edits or {}, grad)
        assert loss is not None
        return logits, loss

    def attention(self, layer: int) -> Any:
        """The library's component of a layer's attention to its own stack."""
        return self.model.blocks[layer].attn

    @contextlib.contextmanager
    def session(self, *, grad: bool = False) -> Iterator[None]:
        """What every use of :attr:`model` must happen inside: promotion; no graph unless asked."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(promoted(self.dtype))
            stack.enter_context(torch.set_grad_enabled(grad))
            for enter in self.extra:
                stack.enter_context(enter())
            yield

    def editable(self) -> dict[str, str]:
        """Sites that a hook of the library shows and can change -> the hook's name."""
        sites, _ = self.expected_hooks()
        by_module = self.module_sites()
        known = self.model.hook_dict  # the bridge makes it anew each time
        return {
            site: name
            for site, name in sites.items()
            if site not in by_module and name in known and parse(site).kind not in UNEDITABLE
        }

    def _run(
        self,
        prompt: Prompt,
        on_site: OnSite,
        force: Force | None,
        on_input: OnSite | None,
        return_type: str,
        edits: Edits,
        grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        emit = shaped(on_site, prompt, self.family)
        sites, _ = self.expected_hooks()
        known = self.model.hook_dict
        modules = self.module_sites()
        if edits and (unknown := sorted(set(edits) - set(self.editable()))):
            raise ImplementationError(
                f"{self.name}: no hook of the library can edit {', '.join(unknown)}",
                "leave out the sites that LensModel.editable does not list",
            )
        readers: dict[int, list[Callable[..., torch.Tensor | None]]] = {}
        for site, hook_name in sites.items():
            if site not in modules and hook_name in known:
                read = self._reader(site, emit, prompt, edits.get(site))
                readers.setdefault(id(known[hook_name]), []).append(read)

        def ours(name: str) -> bool:
            return name in known and id(known[name]) in readers

        def dispatch(tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
            changed: torch.Tensor | None = None
            for read in readers[id(hook)]:
                result = read(tensor if changed is None else changed, hook)
                changed = changed if result is None else result
            return changed

        # One filter for all: 3.9's bridge looks up every name of a list anew, in time that grows
        # with the square of the number of hooks.
        hooks = [(ours, dispatch)]
        kwargs: dict[str, Any] = {"return_type": return_type, "loss_per_token": True}
        if prompt.mask is not None:
            kwargs["attention_mask"] = prompt.mask
        given, content = self.content(prompt)
        kwargs |= given
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.session(grad=grad))
            second = ("ln_final",) if self.family.one_norm else ()
            positions = stack.enter_context(self._positions())
            forced = hooked_inputs(
                self.components(), force, on_input, second=second, positions=positions
            )
            stack.enter_context(forced)
            for site, module in modules.items():
                if site in sites:
                    output = self._output_reader(site, emit)
                    stack.callback(module.register_forward_hook(output).remove)
            with_loss = return_type != "logits"
            options = self.loss_options(prompt) if with_loss else self.run_options(prompt)
            result = self.model.run_with_hooks(content, fwd_hooks=hooks, **kwargs, **options)
        if not with_loss:
            return at_each(prompt, result) if self.family.pooled else result, None
        return result[0], result[1]

    @contextlib.contextmanager
    def _positions(self) -> Iterator[Callable[[], torch.Tensor | None]]:
        """What a shortformer adds to what queries and keys are made of, once it is known."""
        seen: list[torch.Tensor] = []
        if not self.family.shortformer:
            yield lambda: None
            return
        shows = self.model.hook_dict[self.hook_table()["pos_embed"]]
        handle = shows.register_forward_hook(lambda _, __, shown: seen.append(shown))
        try:
            yield lambda: seen[-1]
        finally:
            handle.remove()

    def content(self, prompt: Prompt) -> tuple[dict[str, Any], torch.Tensor]:
        """What :attr:`model` is given by name, and what first: tokens, or what it reads instead."""
        given: dict[str, Any] = prompt.given(self.dtype)
        return given, given.pop(self.family.reads or "", prompt.tokens)

    def run_options(self, prompt: Prompt) -> dict[str, Any]:
        """What every call of :attr:`model` on a prompt needs besides its tokens and mask."""
        given = {} if prompt.decoder is None else {"decoder_input_ids": prompt.decoder}
        return {**asked(self.family, prompt), **given}

    def loss_options(self, prompt: Prompt) -> dict[str, Any]:
        """The same where a loss is asked for: an encoder and a decoder are told of what."""
        options = self.run_options(prompt)
        if self.family.encoder:
            given = one_back(prompt.tokens, self.model.original_model.config)
            options |= {"labels": prompt.tokens, "decoder_input_ids": given}
        return options

    def _reader(
        self,
        site: str,
        emit: OnSite,
        prompt: Prompt,
        edit: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> Callable[..., torch.Tensor | None]:
        kind = site.split(".", 2)[2] if site.startswith("blocks.") else site
        convert = self.layout(kind)

        def read(shown: torch.Tensor, hook: Any) -> None:
            if not isinstance(shown, torch.Tensor):
                self.odd[site] = type(shown).__name__
            tensor = first_tensor(shown)
            emit(site, tensor if convert is None else convert(tensor))

        if edit is None:
            return read

        def change(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            changed = for_each_row(tensor, kind, prompt).clone()
            # Layouts are views: an edit of the view is one of what goes back.
            edit_inside(site, changed if convert is None else convert(changed))
            read(changed, hook)
            return changed

        def inside(_: str, view: torch.Tensor) -> None:
            view.copy_(edit(view.clone()))

        edit_inside = shaped(inside, prompt, self.family)
        return change

    def module_sites(self) -> dict[str, torch.nn.Module]:
        """Sites that the library shows by no hook of its own but that a module returns."""
        return {}

    def _output_reader(self, site: str, emit: OnSite) -> Callable[..., None]:
        read_already = False

        def read(_: Any, __: Any, output: Any) -> None:
            # HookedTransformer normalises the inputs of q, k and v apart, with one module.
            nonlocal read_already
            if not read_already:
                emit(site, first_tensor(output))
            read_already = True

        return read

    def accessors(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The stacked and per-block properties people use, each as a thunk."""
        model, layers = self.model, range(self.dims.n_layers)
        if self.family.encoder:
            return
        for name in ("W_E", "W_U", "b_U", "W_pos"):
            if not hasattr(type(model), name):
                continue  # 3.x bridges keep W_pos in pos_embed alone
            yield name, lambda name=name: getattr(model, name)  # type: ignore[misc]
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            yield name, lambda name=name: getattr(model, name)  # type: ignore[misc]
            for i in layers:
                if getattr(model.blocks[i], "attn", None) is None:
                    continue  # a block whose one module is wrapped whole has no such name
                yield (
                    f"blocks.{i}.attn.{name}",
                    lambda i=i, name=name: getattr(model.blocks[i].attn, name),  # type: ignore[misc]
                )
        for name in ("W_in", "W_gate", "W_out", "b_in", "b_out"):
            yield name, lambda name=name: getattr(model, name)  # type: ignore[misc]
            for i in layers:
                if getattr(model.blocks[i], "mlp", None) is None:
                    continue
                yield (
                    f"blocks.{i}.mlp.{name}",
                    lambda i=i, name=name: getattr(model.blocks[i].mlp, name),  # type: ignore[misc]
                )
