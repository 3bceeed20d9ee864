"""HookedTransformer (before TransformerLens 4) as a subject: an implementation of its own."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from conformance.implementations.base import (
    BLOCK_COMPONENTS,
)
from conformance.implementations.lens_model import HOOKS, LensModel, PortWeight
from conformance.precision import promoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.prompts import Prompt
    from conformance.weights import Weight


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
        return {**HOOKS, **{kind: f"blocks.{{l}}.{kind}" for kind in by_module}, "ln_final": ""}

    def layout(self, kind: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return None

    @property
    def scores_up_to_a_constant(self) -> bool:
        return self.family.alibi

    def module_sites(self) -> dict[str, torch.nn.Module]:
        found = {"ln_final": self.model.ln_final} if self.family.ln_final else {}
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
        found = {"ln_final": model.ln_final} if fam.ln_final else {}
        found["unembed"] = model.unembed
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
        # xIELU keeps its constants in buffers.
        constants = {n: b for n, b in self.model.named_buffers() if ".act_fn." in n}
        return {**self.raw_parameters(), **constants}

    def raw_parameters(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters()}

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
            elif ".mlp.act_fn." in name:
                tensor = tensor.reshape(())  # xIELU's parameters are scalars
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
        if ".mlp.down_norm." in name:
            return name.replace("down_norm", "ln")
        return name

    def run_options(self, prompt: Prompt) -> dict[str, Any]:
        if prompt.mask is None:
            return {"prepend_bos": False}
        return {"prepend_bos": False, "padding_side": prompt.name.removeprefix("padded_")}
