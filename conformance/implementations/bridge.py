"""TransformerBridge as a subject: HuggingFace's modules, wrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.implementations.base import BLOCK_COMPONENTS, stored_buffers
from conformance.implementations.lens_model import HOOKS, LensModel, PortWeight
from conformance.precision import promoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.weights import Weight


#: What bridges call a block's mixer, by its kind.
_MIXERS = ("mixer", "mamba", "linear_attn", "conv", "ssm")
#: What bridges call a mixture's router, where not as HuggingFace does.
_ROUTERS = ("gate", "router", "router_gate")
#: Latent attention's hook_q and hook_k show queries and keys as scores are made of them;
#: hook_rot_q and hook_rot_k their rotated parts alone.
_LATENT_HOOKS = {
    "attn.rot_q": "blocks.{l}.attn.hook_q",
    "attn.rot_k": "blocks.{l}.attn.hook_k",
}


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
        if found is None and name == "ln1":
            found = getattr(block, "norm", None)
        return found

    def _norm_hook(self, name: str) -> str:
        block = self.model.blocks[0]
        plain = name.removesuffix("_post")
        if getattr(block, name, None) is None and self._norm(block, name) is not None:
            return f"blocks.{{l}}.{plain}.hook_out"
        return f"blocks.{{l}}.{name}.hook_out"

    def hook(self, kind: str, layer: int | None = None) -> str:
        if layer is not None:
            block = self.model.blocks[layer]
            if kind == "mixer_out":
                return f"blocks.{layer}.{self._mixer(block)}.hook_out"
            if kind == "ln1" and getattr(block, "ln1", None) is None:
                return f"blocks.{layer}.norm.hook_out"  # a block that is one mixer
        return super().hook(kind, layer)

    @staticmethod
    def _mixer(block: Any) -> str:
        """What the bridge calls the mixer of a block."""
        return next((name for name in _MIXERS if getattr(block, name, None) is not None), "mixer")

    def _router(self) -> str:
        """What shows the router's logits of a mixture; HuggingFace's name where nothing does."""
        if any(own.router_output for own in self.family.every):
            return "hook_router_scores"  # the router's own hook shows its first output
        routers = {i: r for i in range(self.dims.n_layers) if (r := self.family.of(i).router)}
        layer, path = next(iter(routers.items()), (0, "mlp.gate"))
        own, mlp = path.rsplit(".", 1)[-1], getattr(self.model.blocks[layer], "mlp", None)
        # Not getattr: a bridge lends its attributes from HuggingFace's module.
        parts = () if mlp is None else dict(mlp.named_children())
        return next((name for name in (own, *_ROUTERS) if name in parts), own) + ".hook_out"

    @property
    def _native(self) -> bool:
        """Whether attention is HuggingFace's own, and not computed by the bridge."""
        attended = (b.attn for b in self.model.blocks if hasattr(b, "attn"))
        return any(getattr(attn, "maintain_native_attention", False) for attn in attended)

    @property
    def _latent(self) -> bool:
        return any(own.kv_latent for own in self.family.every)

    def hook_table(self) -> dict[str, str]:
        return {
            **HOOKS,
            **(_LATENT_HOOKS if self._latent else {}),
            "ln1": "blocks.{l}.ln1.hook_out",
            "ln2": "blocks.{l}.ln2.hook_out",
            "attn.q_normed": "blocks.{l}.attn.q_norm.hook_out",
            "attn.k_normed": "blocks.{l}.attn.k_norm.hook_out",
            "attn.out": "blocks.{l}.attn.hook_out",
            "mlp.out": "blocks.{l}.mlp.hook_out",
            "mlp.router_logits": f"blocks.{{l}}.mlp.{self._router()}",
            "ln_final": "ln_final.hook_out",
        }

    def layout(self, kind: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        d = self.dims
        if self._latent and kind in ("attn.v", *_LATENT_HOOKS):
            return lambda t: t.transpose(1, 2)  # fires on [batch, head, pos, d_head]
        if self._latent and kind == "attn.z":
            # Whatever heads it shows: what it promises is for the check of hooks to say.
            return lambda t: t.flatten(2).unflatten(-1, (d.n_heads, d.d_head_v))
        if kind not in ("attn.q_normed", "attn.k_normed"):
            return None
        if self.family.qk_norm == "full":
            count = d.n_heads if kind == "attn.q_normed" else d.n_kv_heads
            return lambda t: t.unflatten(-1, (count, d.d_head)) if t.ndim == 3 else t
        if self.family.qk_norm == "per_head" and self._native:
            return None
        # Fires on [batch, head, pos, d_head].
        return lambda t: t.transpose(1, 2)

    def components(self) -> dict[str, torch.nn.Module]:
        model, fam = self.model, self.family
        found = {"ln_final": model.ln_final, "unembed": model.unembed}
        for layer in range(self.dims.n_layers):
            block = model.blocks[layer]
            found[f"blocks.{layer}"] = block
            for name in BLOCK_COMPONENTS:
                if getattr(fam.of(layer), name) is None:
                    continue
                own = self._mixer(block) if name == "mixer" else name
                module = self._norm(block, name) if name.startswith("ln") else getattr(block, own)
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

    def raw_buffers(self) -> dict[str, torch.Tensor]:
        return {
            name.replace("_original_component.", ""): buffer
            for name, buffer in stored_buffers(self.model.original_model).items()
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
