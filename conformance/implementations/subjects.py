"""The subjects: TransformerLens models, read through the hook names that people use.

A subject is a loaded ``TransformerBridge`` or ``HookedTransformer`` and a table that says which
hook shows which site, in which layout. Hooks that an architecture's port does not have must be
listed in ``NOT_EXPOSED`` with a reason; one that is missing without being listed is a failure
of the port, not of the harness.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from conformance.errors import ImplementationError, NotApplicable
from conformance.implementations.base import (
    BLOCK_COMPONENTS,
    UNEDITABLE,
    Edits,
    Force,
    OnSite,
    first_tensor,
    hooked_inputs,
    shaped,
)
from conformance.precision import promoted
from conformance.sites import BLOCK_KINDS, GLOBAL_KINDS, parse
from conformance.sites import KINDS as SITES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conformance.families import Dims, Family
    from conformance.prompts import Prompt
    from conformance.weights import Weight

#: Site kind -> hook name, for both generations; ``{l}`` is the layer.
_HOOKS: Mapping[str, str] = {
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

#: (subject class, architecture or "*", site kind) -> why its hook does not exist or never fires.
NOT_EXPOSED: Mapping[tuple[str, str, str], str] = {
    **{
        ("TransformerBridge", architecture, kind): reason
        for architecture, reason in (
            ("GPTNeoXForCausalLM", _JOINT),
            ("FalconForCausalLM", _JOINT),
            ("Phi3ForCausalLM", _JOINT),
            ("GPTJForCausalLM", _SPLIT_ROTARY),
        )
        for kind in ("attn.rot_q", "attn.rot_k")
    },
    **{
        ("HookedTransformer", "*", kind): "no hook between the norm and the rotation"
        for kind in ("attn.q_normed", "attn.k_normed")
    },
    ("HookedTransformer", "*", "mlp.router_logits"): (
        "only the router's weights after its softmax are hooked"
    ),
}


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
        #: Entered around every forward pass, inside promotion (a fault's function mode, say).
        self.extra: list[Callable[[], AbstractContextManager[Any]]] = []

    @abstractmethod
    def hook_table(self) -> dict[str, str]:
        """Site kind -> hook name with ``{l}`` for the layer."""

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

    @abstractmethod
    def raw_parameters(self) -> dict[str, torch.Tensor]:
        """Every parameter that the forward pass can use, by the port's own names."""

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
        """Site name -> hook name for every site this architecture has; and kinds not exposed."""
        absent = self.family.absent()
        table = self.hook_table()
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
                for layer in range(self.dims.n_layers):
                    sites[f"blocks.{layer}.{kind.name}"] = table[kind.name].format(l=layer)
        return sites, hidden

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
        """One forward pass: logits, and the library's own per-token loss [batch, pos - 1]."""
        logits, loss = self._run(prompt, on_site, None, None, "both", edits or {}, grad)
        assert loss is not None
        return logits, loss

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
        return {
            site: name
            for site, name in sites.items()
            if site not in by_module
            and name in self.model.hook_dict
            and parse(site).kind not in UNEDITABLE
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
        emit = shaped(on_site, prompt)
        sites, _ = self.expected_hooks()
        known = self.model.hook_dict
        modules = self.module_sites()
        if unknown := sorted(set(edits) - set(self.editable())):
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
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.session(grad=grad))
            stack.enter_context(hooked_inputs(self.components(), force, on_input))
            for site, module in modules.items():
                if site in sites:
                    output = self._output_reader(site, emit)
                    stack.callback(module.register_forward_hook(output).remove)
            result = self.model.run_with_hooks(
                prompt.tokens, fwd_hooks=hooks, **kwargs, **self.run_options(prompt)
            )
        if return_type == "logits":
            return result, None
        return result[0], result[1]

    def run_options(self, prompt: Prompt) -> dict[str, Any]:
        """What every call of :attr:`model` on a prompt needs besides its tokens and mask."""
        return {}

    def _reader(
        self,
        site: str,
        emit: OnSite,
        prompt: Prompt,
        edit: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> Callable[..., torch.Tensor | None]:
        kind = site.split(".", 2)[2] if site.startswith("blocks.") else site
        convert = self.layout(kind)

        def read(tensor: torch.Tensor, hook: Any) -> None:
            emit(site, tensor if convert is None else convert(tensor))

        if edit is None:
            return read

        batch = prompt.tokens.shape[0]
        per_row = SITES[kind].axes[0] == "batch"

        def change(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            if per_row and tensor.shape[0] == 1 != batch:  # one table of positions for all rows
                tensor = tensor.expand(batch, *tensor.shape[1:])
            changed = tensor.clone()
            # Layouts are views: an edit of the view is one of what goes back.
            edit_inside(site, changed if convert is None else convert(changed))
            read(changed, hook)
            return changed

        def inside(_: str, view: torch.Tensor) -> None:
            view.copy_(edit(view.clone()))

        edit_inside = shaped(inside, prompt)
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
        for name in ("W_E", "W_U", "b_U", "W_pos"):
            if not hasattr(type(model), name):
                continue  # 3.x bridges keep W_pos in pos_embed alone
            yield name, lambda name=name: getattr(model, name)  # type: ignore[misc]
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            yield name, lambda name=name: getattr(model, name)  # type: ignore[misc]
            for i in layers:
                yield (
                    f"blocks.{i}.attn.{name}",
                    lambda i=i, name=name: getattr(model.blocks[i].attn, name),  # type: ignore[misc]
                )
        for name in ("W_in", "W_gate", "W_out", "b_in", "b_out"):
            yield name, lambda name=name: getattr(model, name)  # type: ignore[misc]
            for i in layers:
                yield (
                    f"blocks.{i}.mlp.{name}",
                    lambda i=i, name=name: getattr(model.blocks[i].mlp, name),  # type: ignore[misc]
                )


class BridgeModel(LensModel):
    """A TransformerBridge."""

    kind = "TransformerBridge"

    def _norm(self, block: Any, name: str) -> Any | None:
        """A norm module of a block; 3.x calls post-norm-only blocks' norms ln1 and ln2."""
        found = getattr(block, name, None)
        if found is None and name.endswith("_post"):
            plain = name.removesuffix("_post")
            if getattr(self.family, plain) is None:
                found = getattr(block, plain, None)
        return found

    def _norm_hook(self, name: str) -> str:
        block = self.model.blocks[0]
        plain = name.removesuffix("_post")
        if getattr(block, name, None) is None and self._norm(block, name) is not None:
            return f"blocks.{{l}}.{plain}.hook_out"
        return f"blocks.{{l}}.{name}.hook_out"

    def hook_table(self) -> dict[str, str]:
        router = (self.family.router or "mlp.gate").rsplit(".", 1)[-1]
        return {
            **_HOOKS,
            "ln1": "blocks.{l}.ln1.hook_out",
            "ln2": "blocks.{l}.ln2.hook_out",
            "attn.q_normed": "blocks.{l}.attn.q_norm.hook_out",
            "attn.k_normed": "blocks.{l}.attn.k_norm.hook_out",
            "attn.out": "blocks.{l}.attn.hook_out",
            "mlp.out": "blocks.{l}.mlp.hook_out",
            "mlp.router_logits": f"blocks.{{l}}.mlp.{router}.hook_out",
            "ln_final": "ln_final.hook_out",
        }

    def layout(self, kind: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        d = self.dims
        if kind not in ("attn.q_normed", "attn.k_normed"):
            return None
        if self.family.qk_norm == "full":
            count = d.n_heads if kind == "attn.q_normed" else d.n_kv_heads
            return lambda t: t.unflatten(-1, (count, d.d_head)) if t.ndim == 3 else t
        # Fires on [batch, head, pos, d_head].
        return lambda t: t.transpose(1, 2)

    def components(self) -> dict[str, torch.nn.Module]:
        model, fam = self.model, self.family
        found = {"ln_final": model.ln_final, "unembed": model.unembed}
        for layer in range(self.dims.n_layers):
            block = model.blocks[layer]
            found[f"blocks.{layer}"] = block
            for name in BLOCK_COMPONENTS:
                if getattr(fam, name) is None:
                    continue
                module = self._norm(block, name) if name.startswith("ln") else getattr(block, name)
                if name == "mlp" and fam.mlp == fam.up:
                    module = getattr(module, "in")  # a symbolic MLP is never called itself
                if module is not None:
                    found[f"blocks.{layer}.{name}"] = module
        return found

    def process_weights(self, flags: Mapping[str, bool] | None = None) -> None:
        with promoted(self.dtype):
            self.model.enable_compatibility_mode(disable_warnings=True, **(flags or {}))

    raw_is_separate = True

    def named_weights(self) -> dict[str, torch.Tensor]:
        with promoted(self.dtype):
            return {name: t.detach() for name, t in self.model.tl_parameters().items()}

    def raw_parameters(self) -> dict[str, torch.Tensor]:
        return {
            name.replace("_original_component.", ""): p.detach()
            for name, p in self.model.named_parameters()
        }

    def convention(self, expected: Mapping[str, Weight]) -> dict[str, PortWeight]:
        found: dict[str, PortWeight] = {}
        block = self.model.blocks[0]
        for name, weight in expected.items():
            tensor = weight.tensor
            if name.endswith((".attn.W_K", ".attn.W_V", ".attn.b_K", ".attn.b_V")):
                # Repeated over their group, as HookedTransformer's users expect of W_K and W_V.
                tensor = tensor.repeat_interleave(self.dims.group, dim=0)
            elif name == "pos_embed.W_pos":
                tensor = tensor[self.family.pos_offset :]
            part = name.split(".")[2] if name.startswith("blocks.") else ""
            if part.endswith("_post") and not hasattr(block, part):
                name = name.replace(part, part.removesuffix("_post"))  # as in _norm
            found[name] = PortWeight(tensor)
        return found


class HookedModel(LensModel):
    """A HookedTransformer.

    ``ln1.hook_normalized`` and its like fire before the norm's weight is applied, so a norm's
    output is read from the module itself; so are attention's and the MLP's own outputs where a
    norm follows them.
    """

    kind = "HookedTransformer"
    #: Loads the same checkpoint with the standard processing; None for a declared subject.
    load_processed: Callable[..., Any] | None = None

    def hook_table(self) -> dict[str, str]:
        by_module = ("ln1", "ln2", "attn.out", "mlp.out")
        return {**_HOOKS, **{kind: f"blocks.{{l}}.{kind}" for kind in by_module}, "ln_final": ""}

    def layout(self, kind: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return None

    @property
    def scores_up_to_a_constant(self) -> bool:
        return not self.family.rotary and self.family.pos_embed is None

    def module_sites(self) -> dict[str, torch.nn.Module]:
        found = {"ln_final": self.model.ln_final}
        for layer in range(self.dims.n_layers):
            block = self.model.blocks[layer]
            for kind, name in (
                ("ln1", "ln1"),
                ("ln2", "ln2"),
                ("attn.out", "attn"),
                ("mlp.out", "mlp"),
            ):
                module = getattr(block, name, None)
                if module is not None:
                    found[f"blocks.{layer}.{kind}"] = module
        return found

    def components(self) -> dict[str, torch.nn.Module]:
        model, fam = self.model, self.family
        found = {"ln_final": model.ln_final, "unembed": model.unembed}
        for layer in range(self.dims.n_layers):
            block = model.blocks[layer]
            found[f"blocks.{layer}"] = block
            for name in BLOCK_COMPONENTS:
                module = getattr(block, name, None)
                if module is None and name.endswith("_post"):
                    module = getattr(block, name.removesuffix("_post"), None)
                if getattr(fam, name) is not None and module is not None:
                    found[f"blocks.{layer}.{name}"] = module
        return found

    def process_weights(self, flags: Mapping[str, bool] | None = None) -> None:
        with promoted(self.dtype):
            if self.load_processed is not None:
                # The guards that keep processing off where it would be wrong live in the loader.
                # The weights as they were go first: both at once would double the memory.
                self.model = None
                gc.collect()
                self.model = self.load_processed(flags=flags).eval()
                return
            if flags is not None:
                self.model.load_and_process_state_dict(self.model.state_dict(), **flags)
                return
            self.model.process_weights_(
                fold_ln=True,
                center_writing_weights=True,
                center_unembed=True,
                refactor_factored_attn_matrices=False,
            )

    def named_weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def raw_parameters(self) -> dict[str, torch.Tensor]:
        return self.named_weights()

    def convention(self, expected: Mapping[str, Weight]) -> dict[str, PortWeight]:
        found: dict[str, PortWeight] = {}
        fam, attn = self.family, self.model.blocks[0].attn
        grouped = hasattr(attn, "_W_K")
        for name, weight in expected.items():
            tensor, derived = weight.tensor.to(self.dtype), False
            if name == "pos_embed.W_pos":
                tensor = tensor[fam.pos_offset :]
            elif name == "embed.W_E" and fam.embed_scaled:
                # Multiplied by sqrt(d_model) once and for all.
                tensor, derived = tensor * self.dims.d_model**0.5, True
            elif name.endswith(".w") and fam.norm_offset:
                tensor, derived = tensor + 1, True
            if grouped and name.endswith((".W_K", ".W_V", ".b_K", ".b_V")):
                name = name.replace("attn.", "attn._")
            found[self._renamed(name)] = PortWeight(
                tensor.T if self._as_linear(name) else tensor, derived
            )
            if fam.mlp_reads_ln1 and ".ln1." in name:
                found[name.replace(".ln1.", ".ln2.")] = PortWeight(tensor, derived)
        return found

    def _as_linear(self, name: str) -> bool:
        """Router and experts are ``torch.nn.Linear``: [out, in]."""
        return name.endswith(".mlp.W_router") or (".experts." in name and ".W_" in name)

    def _renamed(self, name: str) -> str:
        part = name.split(".")[2] if name.startswith("blocks.") else ""
        if part.endswith("_post") and not hasattr(self.model.blocks[0], part):
            return name.replace(part, part.removesuffix("_post"))
        if name.endswith((".mlp.W_router", ".mlp.b_router")):
            kind = "weight" if ".W_" in name else "bias"
            return name.rsplit(".", 1)[0] + f".W_gate.{kind}"
        if ".experts." in name:
            stem, what = name.rsplit(".", 1)
            kind = "weight" if what.startswith("W_") else "bias"
            return f"{stem}.W_{what[2:]}.{kind}"
        if name.startswith("embed_ln."):
            return "embed.ln." + name.rsplit(".", 1)[1]
        return name

    def run_options(self, prompt: Prompt) -> dict[str, Any]:
        if prompt.mask is None:
            return {"prepend_bos": False}
        return {"prepend_bos": False, "padding_side": prompt.name.removeprefix("padded_")}


def load_subject(
    name: str,
    checkpoint: Path,
    fam: Family,
    d: Dims,
    dtype: torch.dtype,
    *,
    loader: str | None = None,
    hooked_name: str | None = None,
    trust_remote_code: bool = False,
) -> LensModel:
    """Load a subject from a checkpoint directory, on the CPU.

    Args:
        name: ``bridge``, ``hooked``, or a name declared in ``models.toml`` (then ``loader``).
        loader: ``package.module:function``, called as ``function(checkpoint_dir, dtype=...,
            device=...)``.

    Raises:
        NotApplicable: the installed TransformerLens has no such subject.
        ImplementationError: loading failed; that is the port's failure.
    """
    with promoted(dtype):
        if loader is not None:
            return _wrap(_declared(loader, checkpoint, dtype), name, fam, d, dtype)
        if name == "hooked":
            from conformance.implementations.hooked import load_hooked

            load = functools.partial(
                load_hooked,
                checkpoint,
                architecture=fam.architecture,
                dtype=dtype,
                official_name=hooked_name,
            )
            subject = _wrap(load(), name, fam, d, dtype)
            assert isinstance(subject, HookedModel)
            subject.load_processed = functools.partial(load, processed=True)
            return subject
        if name == "bridge":
            return _wrap(_bridge(checkpoint, dtype, trust_remote_code), name, fam, d, dtype)
    raise ImplementationError(
        f"no subject named {name!r}",
        f'declare it in models.toml: [subjects.{name}] loader = "package.module:function"',
    )


def _bridge(checkpoint: Path, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise NotApplicable(
            f"the installed TransformerLens has no TransformerBridge ({error})",
            "install transformer-lens 3.0 or later",
        ) from error
    return TransformerBridge.boot_transformers(
        str(checkpoint), dtype=dtype, device="cpu", trust_remote_code=trust_remote_code
    )


def _declared(loader: str, checkpoint: Path, dtype: torch.dtype) -> Any:
    module_name, _, function_name = loader.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ImplementationError(
            f"the subject's loader {loader!r} cannot be imported: {error}",
            "is its package installed in this environment, or its folder on PYTHONPATH?",
        ) from error
    return function(checkpoint, dtype=dtype, device="cpu")


def _wrap(model: Any, name: str, fam: Family, d: Dims, dtype: torch.dtype) -> LensModel:
    mro = {cls.__name__ for cls in type(model).__mro__}
    for wrapper in (BridgeModel, HookedModel):
        if wrapper.kind in mro:
            model.eval()
            return wrapper(model, name, fam, d, dtype)
    raise ImplementationError(
        f"subject {name!r} is a {type(model).__name__}",
        "the loader must return a TransformerBridge or a HookedTransformer",
    )
