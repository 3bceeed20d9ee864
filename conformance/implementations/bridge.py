"""TransformerBridge as a subject: HuggingFace's modules, wrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.implementations.base import BLOCK_COMPONENTS, settled, stored_buffers
from conformance.implementations.lens_model import HOOKS, LensModel, PortWeight
from conformance.precision import promoted
from conformance.weights import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from conformance.families import Dims, Family
    from conformance.weights import Weight


#: What bridges call a mixture's router, where not as HuggingFace does.
_ROUTERS = ("gate", "router", "router_gate")
#: Latent attention's hook_q and hook_k show queries and keys as scores are made of them;
#: hook_rot_q and hook_rot_k their rotated parts alone.
_LATENT_HOOKS = {
    "attn.rot_q": "blocks.{l}.attn.hook_q",
    "attn.rot_k": "blocks.{l}.attn.hook_k",
}


#: What bridges call modules whose output they show by no name of a block's.
_UNNAMED_BRANCHES = ("mixer", "channel_mix")
_LOGITS_BIAS = "final_logits_bias"
_CROSS_HOOKS = (
    *(("q", "q"), ("k", "k"), ("v", "v"), ("scores", "attn_scores")),
    *(("pattern", "pattern"), ("z", "z")),
)


class BridgeModel(LensModel):
    """A TransformerBridge."""

    kind = "TransformerBridge"

    def __init__(self, model: Any, name: str, fam: Family, d: Dims, dtype: torch.dtype) -> None:
        super().__init__(model, name, fam, d, dtype)
        settled(model.original_model)

    def _block(self, layer: int) -> Any:
        encoder = self.family.encoder
        if not encoder:
            return self.model.blocks[layer]
        if layer < encoder:
            return self.model.encoder_blocks[layer]
        return self.model.decoder_blocks[layer - encoder]

    def _stack(self, layer: int) -> str:
        """What the bridge calls a layer."""
        encoder = self.family.encoder
        if not encoder:
            return f"blocks.{layer}"
        inside = layer < encoder
        return f"encoder_blocks.{layer}" if inside else f"decoder_blocks.{layer - encoder}"

    def _after_crossing(self) -> str:
        """What shows the stream between a decoder's attention to its encoder and its MLP."""
        if hasattr(next(iter(getattr(self.model, "decoder_blocks", ())), None), "hook_resid_mid2"):
            return "hook_resid_mid2"
        return "ln_cross.hook_out" if self.family.post_norm else "ln2.hook_in"

    def _crossed(self) -> str:
        """The component whose output a decoder's attention to its encoder adds to the stream."""
        return "ln_cross_post" if any(own.ln_cross_post for own in self.family.every) else "cross"

    @property
    def _two_embeddings(self) -> bool:
        return hasattr(self.model, "encoder_embed")

    def _part(self, layer: int, name: str) -> tuple[str, Any] | None:
        """What the bridge calls a component of a block, and its module.

        By its usual name; or, where the bridge has another, by the path of the HuggingFace module
        that it wraps.
        """
        block, path = self._block(layer), getattr(self.family.of(layer), name)
        # A decoder's norms are counted with the one before its attention to the encoder.
        counted = self.family.encoder and name.startswith("ln")
        found = None if counted else getattr(block, name, None)
        if found is not None:
            return name, found
        for own, module in block._modules.items():
            if path is not None and getattr(module, "name", None) == path:
                return own, module
        return None

    def attention(self, layer: int) -> Any:
        part = self._part(layer, "attn") if self.family.encoder else None
        return super().attention(layer) if part is None else part[1]

    def hook(self, usual: str, kind: str, layer: int) -> str:
        usual = super().hook(usual, kind, layer)
        for name in BLOCK_COMPONENTS:
            at = f"blocks.{layer}.{name}."
            part = self._part(layer, name) if usual.startswith(at) else None
            if part is not None:
                return f"{self._stack(layer)}.{part[0]}.{usual.removeprefix(at)}"
        branch = {"attn_out": "attn", "mlp_out": "mlp"}.get(kind)
        part = self._part(layer, branch) if branch else None
        if part is not None and part[0] in _UNNAMED_BRANCHES:
            # A block that is one norm and one module has no hook by the usual name.
            return f"blocks.{layer}.{part[0]}.hook_out"
        return usual.replace(f"blocks.{layer}.", f"{self._stack(layer)}.", 1)

    def _router(self) -> str:
        """What shows the router's logits of a mixture; HuggingFace's name where nothing does."""
        if any(own.router_output for own in self.family.every):
            return "hook_router_scores"  # the router's own hook shows its first output
        routers = {i: r for i in range(self.dims.n_layers) if (r := self.family.of(i).router)}
        layer, path = next(iter(routers.items()), (0, "mlp.gate"))
        own, mlp = path.rsplit(".", 1)[-1], getattr(self._block(layer), "mlp", None)
        # Not getattr: a bridge lends its attributes from HuggingFace's module.
        parts = () if mlp is None else dict(mlp.named_children())
        return next((name for name in (own, *_ROUTERS) if name in parts), own) + ".hook_out"

    def _per_layer_out(self) -> str:
        """What shows what a token's embedding of a layer adds to the stream."""
        return next((p for own in self.family.every if (p := own.per_layer_out)), "")

    @property
    def _native(self) -> bool:
        """Whether attention is HuggingFace's own, and not computed by the bridge.

        Bridges that compute it say so too, and have a forward pass of their own.
        """
        blocks = map(self._block, range(self.dims.n_layers))
        attended = [b.attn for b in blocks if hasattr(b, "attn")]
        return any(
            getattr(attn, "maintain_native_attention", False)
            and type(attn).forward.__qualname__.startswith("AttentionBridge.")
            for attn in attended
        )

    @property
    def _norm_by_head(self) -> bool:
        """Whether norms of queries have weights [head, d_head]: heads are not moved before them."""
        norms = [getattr(getattr(b, "attn", None), "q_norm", None) for b in self.model.blocks]
        weights = [getattr(getattr(n, "original_component", None), "weight", None) for n in norms]
        return any(weight is not None and weight.ndim > 1 for weight in weights)

    @property
    def _latent(self) -> bool:
        return any(own.kv_latent for own in self.family.every)

    def hook_table(self) -> dict[str, str]:
        # Two tables: the encoder's is the first.
        apart = {"embed": "encoder_embed.hook_out"} if self._two_embeddings else {}
        return {
            **HOOKS,
            **apart,
            **(_LATENT_HOOKS if self._latent else {}),
            "ln_pre": "blocks.{l}.ln_pre.hook_out",
            "ln1": "blocks.{l}.ln1.hook_out",
            "ln2": "blocks.{l}.ln2.hook_out",
            "attn.q_normed": "blocks.{l}.attn.q_norm.hook_out",
            "attn.k_normed": "blocks.{l}.attn.k_norm.hook_out",
            "attn.v_normed": "blocks.{l}.attn.v_norm.hook_out",
            "attn.out": "blocks.{l}.attn.hook_out",
            "mixer_out": "blocks.{l}.mixer.hook_out",
            "per_layer_out": f"blocks.{{l}}.{self._per_layer_out()}.hook_out",
            "mlp.out": "blocks.{l}.mlp.hook_out",
            "mlp.router_logits": f"blocks.{{l}}.mlp.{self._router()}",
            "ln_cross": "blocks.{l}.ln_cross.hook_out",
            **{
                f"cross_attn.{kind}": f"blocks.{{l}}.cross.hook_{shown}"
                for kind, shown in _CROSS_HOOKS
            },
            "cross_attn_out": f"blocks.{{l}}.{self._crossed()}.hook_out",
            "resid_cross": f"blocks.{{l}}.{self._after_crossing()}",
            "ln_encoder": "encoder_ln_final.hook_out",
            "ln_final": "decoder_ln_final.hook_out" if self.family.encoder else "ln_final.hook_out",
            **self._of_content(),
        }

    def layout(self, kind: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        d = self.dims
        if self._latent and kind in ("attn.v", *_LATENT_HOOKS):
            return lambda t: t.transpose(1, 2)  # fires on [batch, head, pos, d_head]
        if self._latent and kind == "attn.z":
            # Whatever heads it shows it as: sweeps over heads show whether they are the model's.
            return lambda t: t.flatten(2).unflatten(-1, (d.n_heads, d.d_head_v))
        if kind not in ("attn.q_normed", "attn.k_normed"):
            return None
        if any(fam.qk_norm == "full" for fam in self.family.every):
            count = d.n_heads if kind == "attn.q_normed" else d.n_kv_heads
            return lambda t: t.unflatten(-1, (count, d.d_head)) if t.ndim == 3 else t
        if self.family.qk_norm == "per_head" and (self._native or self._norm_by_head):
            return None
        # Fires on [batch, head, pos, d_head].
        return lambda t: t.transpose(1, 2)

    def _ln_final(self) -> torch.nn.Module:
        if self.family.encoder:
            found: torch.nn.Module = self.model.decoder_ln_final
        else:
            found = self.model.embed_ln if self._of_wave else self.model.ln_final
        return found

    @property
    def _of_wave(self) -> bool:
        """Whether it is an encoder of waves, which has one norm beside its blocks, before or after
        them: the bridge calls it the embedding's in both."""
        return hasattr(self.model, "conv_pos_embed")

    def _of_content(self) -> dict[str, str]:
        """Where what goes into the first block is shown, if it is not made of tokens."""
        if not self._of_wave:
            return {}
        normed = "embed_ln.hook_out"
        return {
            "embed": normed if self.family.embed_ln else "feat_proj.hook_out",
            "pos_embed": "conv_pos_embed.hook_out",
            "ln_final": normed,
        }

    def components(self) -> dict[str, torch.nn.Module]:
        model, fam = self.model, self.family
        found = {"unembed": model.unembed} if fam.unembed else {}
        if fam.ln_final:
            found["ln_final"] = self._ln_final()
        if fam.encoder_ln_final:
            found["ln_encoder"] = model.encoder_ln_final
        for layer in range(self.dims.n_layers):
            found[f"blocks.{layer}"] = self._block(layer)
            for name in BLOCK_COMPONENTS:
                own, part = fam.of(layer), self._part(layer, name)
                if getattr(own, name) is None or part is None:
                    continue
                module = part[1]
                if name == "mlp" and own.mlp == own.up:
                    module = getattr(module, "in")  # a symbolic MLP is never called itself
                found[f"blocks.{layer}.{name}"] = module
        return found

    def process_weights(self, flags: Mapping[str, bool] | None = None) -> None:
        with promoted(self.dtype):
            self.model.enable_compatibility_mode(disable_warnings=True, **(flags or {}))

    raw_is_separate = True

    def named_weights(self) -> dict[str, torch.Tensor]:
        with promoted(self.dtype):
            return {name: t.detach() for name, t in self.model.tl_parameters().items()}

    def used_weights(self) -> dict[str, torch.Tensor]:
        """As :meth:`named_weights`, whose source knows one stack of blocks."""
        if not self.family.encoder:
            return self.named_weights()
        own = self.model.original_model.named_parameters(remove_duplicate=False)
        found = {name.replace("_original_component.", ""): p.detach() for name, p in own}
        found = self._with_logits_bias(found, self._buffers()) | self.raw_buffers()
        found = {name: tensor.to(self.dtype) for name, tensor in found.items()}
        return {n: w.tensor for n, w in canonical(found, self.family, self.dims).items()}

    def raw_parameters(self) -> dict[str, torch.Tensor]:
        found = {
            name.replace("_original_component.", ""): p.detach()
            for name, p in self.model.named_parameters()
        }
        return self._with_logits_bias(found, self._buffers())

    def _buffers(self) -> dict[str, torch.Tensor]:
        return {
            name.replace("_original_component.", ""): buffer
            for name, buffer in stored_buffers(self.model.original_model).items()
        }

    def _with_logits_bias(
        self, found: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What is added to the logits, under HuggingFace's name.

        The bridge moves that buffer into the bias of the unembedding, which it makes: a parameter,
        or a buffer where the unembedding is tied.
        """
        bias = f"{self.family.unembed}.bias"
        if self.family.unembed_bias == _LOGITS_BIAS and bias in found:
            found[_LOGITS_BIAS] = found.pop(bias)[None] + buffers[_LOGITS_BIAS]
        return found

    def raw_buffers(self) -> dict[str, torch.Tensor]:
        moved, found = _LOGITS_BIAS in self.raw_parameters(), self._buffers()
        found = self._with_logits_bias(found, dict(found))
        return {k: v for k, v in found.items() if not (moved and k == _LOGITS_BIAS)}

    def _group(self, name: str) -> int:
        """Query heads per key/value head of the layer that a weight is of."""
        return self.dims.of(int(name.split(".")[1])).group

    def convention(self, expected: Mapping[str, Weight]) -> dict[str, PortWeight]:
        found: dict[str, PortWeight] = {}
        for name, weight in expected.items():
            tensor = weight.tensor
            if name.endswith((".attn.W_K", ".attn.W_V", ".attn.b_K", ".attn.b_V")):
                # Repeated over their group, as HookedTransformer's users expect of W_K and W_V.
                tensor = tensor.repeat_interleave(self._group(name), dim=0)
            elif name == "pos_embed.W_pos":
                tensor = tensor[self.family.pos_offset :]
            part = name.split(".")[2] if name.startswith("blocks.") else ""
            if part.startswith("ln") and (own := self._part(int(name.split(".")[1]), part)):
                name = name.replace(part, own[0])
            found[name] = PortWeight(tensor)
        return found
