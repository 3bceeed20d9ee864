"""The reference: a HuggingFace model, eager attention, tapped by hooks of ours.

Sites that are a module's input or output are read by forward hooks at the paths that
``conformance/families`` states. Attention's insides (rotated q and k, scores, pattern) are not
modules; they are read where every implementation has them: the arguments of the last batched
product before the softmax, and the softmax's own input and output.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from conformance.classes import model_class, read_config
from conformance.errors import ImplementationError
from conformance.families import Dims, Family, dims, family
from conformance.implementations.base import (
    BLOCK_COMPONENTS,
    Edits,
    Force,
    OnSite,
    asked,
    at_each,
    decoded,
    first_tensor,
    for_each_row,
    hooked_inputs,
    replace_input,
    settled,
    shaped,
    stored_buffers,
)
from conformance.precision import promoted
from conformance.weights import split_fused, split_gated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conformance.prompts import Prompt

_PRODUCTS = frozenset(
    {
        torch.matmul,
        torch.bmm,
        torch.baddbmm,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.bmm,
        torch.Tensor.baddbmm,
    }
)
_SOFTMAXES = frozenset({torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax})
_CATS = frozenset({torch.cat, torch.concat})

#: Classes published without a head -> the class that adds it: their embedding.
HEADLESS = {"BloomModel": "BloomForCausalLM"}

#: Sites that the attention tap edits itself: they are no module's input or output. (The first two
#: are, where norms follow the rotation.)
_EDITED_BY_TAP = ("attn.rot_q", "attn.rot_k", "attn.scores", "attn.pattern")  # cross_attn's, too


class _AttentionTap(TorchFunctionMode):
    """Reads, and edits, rotated q and k, scores and pattern while a layer's attention runs."""

    def __init__(self, fam: Family, d: Dims, emit: OnSite, edits: Edits) -> None:
        super().__init__()
        self._all, self._sizes, self._emit, self._edits = fam, d, emit, edits
        self._family, self._dims, self._part = fam, d, "attn"
        self._layer: int | None = None
        self._product: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sink_scores: torch.Tensor | None = None

    def enter(self, layer: int, part: str = "attn") -> None:
        self._layer, self._product, self._sink_scores = layer, None, None
        self._part = part
        self._family, self._dims = self._all.of(layer), self._sizes.of(layer)

    def leave(self) -> None:
        self._layer = None

    @property
    def _rotates(self) -> bool:
        """Whether this attention rotates: a decoder's to its encoder never does."""
        return self._family.rotary and self._part == "attn"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._layer is None:
            return func(*args, **kwargs)
        at = f"blocks.{self._layer}.{self._part}."
        if func in _PRODUCTS and self._of_queries(*args[:2]):
            if self._edits and not self._family.qk_norm_rotated:
                args = (*self._edited_product(at, args[0], args[1]), *args[2:])
            self._product = (args[0], args[1])
        elif func in _CATS and self._family.sinks and len(args[0]) == 2:
            scores = args[0][0]
            if scores.ndim == 4 and args[0][1].shape[-1] == 1:
                scores = self._edited(at + "scores", scores)
                args = ((scores, args[0][1]), *args[1:])
                self._sink_scores = scores
        elif func in _SOFTMAXES and args and args[0].ndim in (3, 4) and self._sink_scores is None:
            scores = self._edited(at + "scores", self._by_head(args[0]))
            args = (scores.reshape(args[0].shape), *args[1:])
        result = func(*args, **kwargs)
        if func in _SOFTMAXES and result.ndim in (3, 4):
            if self._sink_scores is None:
                pattern = self._edited(at + "pattern", self._by_head(result))
                result = pattern.reshape(result.shape)
            elif at + "pattern" in self._edits:
                kept = self._edited(at + "pattern", result[..., :-1])
                result = torch.cat([kept, result[..., -1:]], dim=-1)
            scores = args[0] if args else kwargs["input"]
            self._softmax(self._by_head(scores), self._by_head(result))
            self._layer = None  # the first softmax is the pattern; experts may use others
        return result

    def _by_head(self, tensor: torch.Tensor) -> torch.Tensor:
        """Scores or pattern as [batch, head, query, key], where they are [batch head, ...]."""
        return tensor if tensor.ndim == 4 else tensor.unflatten(0, (-1, self._dims.n_heads))

    def _of_queries(self, left: torch.Tensor, right: torch.Tensor | None = None) -> bool:
        """Whether a product is that of queries and keys: an indexer forms others before it."""
        if left.ndim != 4 or right is None or right.ndim != 4:
            return False
        heads, size = self._dims.n_heads, self._dims.d_head
        return not self._family.indexed or (left.shape[1] == heads and left.shape[-1] == size)

    def _edited(self, site: str, tensor: torch.Tensor) -> torch.Tensor:
        edit = self._edits.get(site)
        return tensor if edit is None else edit(tensor)

    def _edited_product(
        self, at: str, q: torch.Tensor, k_transposed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The product's factors [batch, head, query, d_head], [batch, head, d_head, key]."""
        d = self._dims
        if not {at + "rot_q", at + "rot_k"} & set(self._edits):
            return q, k_transposed
        if self._product is not None:
            raise ImplementationError(
                f"{self._family.architecture}: attention forms two products before its softmax",
                "say which one takes rotated q and k in implementations/huggingface.py",
            )
        q = self._edited(at + "rot_q", q.transpose(1, 2)).transpose(1, 2)
        k = k_transposed.transpose(-1, -2)
        repeated = k.shape[1] == d.n_heads != d.n_kv_heads
        if repeated:
            k = self._once(k)
        k = self._edited(at + "rot_k", k.transpose(1, 2)).transpose(1, 2)
        if repeated and self._family.tiled:
            k = k.repeat(1, d.group, 1, 1)
        elif repeated:
            k = k.repeat_interleave(d.group, dim=1)
        return q, k.transpose(-1, -2)

    def _once(self, k: torch.Tensor) -> torch.Tensor:
        """Each key head of [batch, head, key, d_head], repeated for its queries, once."""
        d = self._dims
        return k[:, : d.n_kv_heads] if self._family.tiled else k[:, :: d.group]

    def _softmax(self, scores: torch.Tensor, pattern: torch.Tensor) -> None:
        at = f"blocks.{self._layer}.{self._part}."
        rotated_last = self._rotates and not self._family.qk_norm_rotated
        if rotated_last and self._product is not None:
            q, k = self._product[0], self._product[1].transpose(-1, -2)
            if k.shape[1] == self._dims.n_heads != self._dims.n_kv_heads:
                k = self._once(k)
            self._emit(at + "rot_q", q.transpose(1, 2))
            self._emit(at + "rot_k", k.transpose(1, 2))
        if self._sink_scores is not None:
            scores, pattern = self._sink_scores, pattern[..., :-1]
        self._emit(at + "scores", scores)
        self._emit(at + "pattern", pattern)


def returned(output: Any) -> torch.Tensor:
    """Logits; or the last hidden states [batch, pos, d_model], where there is no head."""
    found = getattr(output, "logits", None)
    states: torch.Tensor = output.last_hidden_state if found is None else found
    return states


class HuggingFaceModel:
    """A HuggingFace causal language model that reports every site.

    Args:
        checkpoint: directory that ``from_pretrained`` reads.
        architecture: the class name in ``models.toml``; must be the checkpoint's own.
        dtype: float64 means promoted float64.
        attention: ``eager``, or ``sdpa`` for a variant without scores and pattern.

    Raises:
        ImplementationError: the checkpoint is of another architecture or does not load whole.
    """

    def __init__(
        self,
        checkpoint: Path,
        architecture: str,
        dtype: torch.dtype,
        *,
        attention: str = "eager",
        trust_remote_code: bool = False,
    ) -> None:
        self.dtype, self.attention = dtype, attention
        self.model = load(checkpoint, architecture, dtype, attention, trust_remote_code)
        config = self.model.config
        self.family: Family = family(architecture, config)
        self.dims: Dims = dims(config)
        self._modules = dict(self.model.named_modules())
        parameters = inspect.signature(self.model.forward).parameters
        self._takes_use_cache = self.family.reads is None
        self._takes_position_ids = "position_ids" in parameters and not self.family.own_positions

    @property
    def config(self) -> Any:
        """The config of the language model, whatever else there is."""
        return self.model.config.get_text_config()

    def parameters(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds, by HuggingFace's names: parameters (tied ones once, under
        their first name) and buffers that are stored with them (a router's correction bias)."""
        found = {name: p.detach() for name, p in self.model.named_parameters()}
        return {**found, **stored_buffers(self.model)}

    def tied_unembed(self) -> bool:
        """Whether the unembedding is the embedding."""
        if self.family.reads or self.family.unembed is None:  # no table of tokens, or no head
            return False
        return self._modules[self.family.unembed].weight is self._modules[self.family.embed].weight

    def _module(self, path: str) -> torch.nn.Module:
        try:
            return self._modules[path]
        except KeyError:
            raise ImplementationError(
                f"{self.family.architecture} has no module {path!r}",
                "correct its entry in conformance/families/",
            ) from None

    def components(self) -> dict[str, torch.nn.Module]:
        """Component name -> module whose input is the component's input."""
        fam = self.family
        found = {"unembed": self._module(fam.unembed)} if fam.unembed else {}
        if fam.encoder_ln_final:
            found["ln_encoder"] = self._module(fam.encoder_ln_final)
        if fam.ln_final:
            found["ln_final"] = self._module(fam.ln_final)
        for layer in range(self.dims.n_layers):
            own = fam.of(layer)
            found[f"blocks.{layer}"] = self._module(own.at("", layer))
            for name in BLOCK_COMPONENTS:
                path = getattr(own, name)
                if path is not None:
                    found[f"blocks.{layer}.{name}"] = self._module(own.at(path, layer))
        return found

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
        """See :class:`conformance.implementations.base.Implementation`."""
        inputs = {} if self.family.reads else {"input_ids": prompt.tokens}
        inputs |= prompt.given(self.dtype)
        inputs |= asked(self.family, prompt)
        if self.family.encoder:  # teacher forcing: what comes out is what went in
            given = inputs["decoder_input_ids"] = decoded(prompt, self.model.config)
            # Said, because T5Gemma masks padding that it finds in these, unless it keeps a cache.
            inputs["decoder_attention_mask"] = torch.ones_like(given)
        if prompt.mask is not None:
            inputs["attention_mask"] = prompt.mask
            if self._takes_position_ids:
                # What `generate` does: positions count real tokens only.
                positions = (prompt.mask.cumsum(-1) - 1).clamp_min(0)
                inputs["position_ids"] = positions
        elif edits and self._takes_position_ids:
            # Told so, the table of positions is read once for each row, and an edit can tell
            # rows apart.
            batch, pos = prompt.tokens.shape
            inputs["position_ids"] = torch.arange(pos).repeat(batch, 1)
        by_tap = _EDITED_BY_TAP[2 if self.family.qk_norm_rotated else 0 :]
        emit = shaped(on_site, prompt, self.family)
        tapped = _editing(emit, prompt, edits, by_tap, self.family) if edits else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.session(grad=grad))
            stack.enter_context(self._tapped(tapped or emit, edits or {}, prompt))
            second = ("ln_final",) if self.family.one_norm else ()
            forced = hooked_inputs(self.components(), force, on_input, second=second)
            stack.enter_context(forced)
            cache = {"use_cache": False} if self._takes_use_cache else {}
            logits = returned(self.model(**inputs, **cache))
        return at_each(prompt, logits) if self.family.pooled else logits

    @contextlib.contextmanager
    def session(self, *, grad: bool = False) -> Iterator[None]:
        """What every use of :attr:`model` must happen inside: promotion; no graph unless asked."""
        with promoted(self.dtype), torch.set_grad_enabled(grad):
            yield

    @contextlib.contextmanager
    def _tapped(self, emit: OnSite, edits: Edits, prompt: Prompt) -> Iterator[None]:
        fam, d = self.family, self.dims
        tap = _AttentionTap(fam, d, emit, edits)
        with contextlib.ExitStack() as stack:

            def after(
                path: str,
                use: Callable[[torch.Tensor], None],
                index: int = 0,
                *,
                table: bool = False,
            ) -> None:
                def hook(_: Any, __: Any, output: Any) -> Any:
                    shown = output[index] if index else first_tensor(output)
                    if not edits or index:
                        return use(shown)
                    shown = for_each_row(shown, "pos_embed", prompt) if table else shown
                    use(shown := shown.clone())
                    if isinstance(output, torch.Tensor):
                        return shown
                    return type(output)((shown, *output[1:]))  # GPT's blocks give lists

                stack.callback(self._module(path).register_forward_hook(hook).remove)

            def before(
                path: str, use: Callable[[torch.Tensor], None], *, shared: bool = False
            ) -> None:
                def hook(_: Any, args: Any, kwargs: Any) -> Any:
                    shown = args[0] if args else kwargs["hidden_states"]
                    if not edits or shared:
                        return use(shown)
                    use(shown := shown.clone())
                    return replace_input(args, kwargs, shown)

                handle = self._module(path).register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)

            def to(name: str, factor: float = 1.0) -> Callable[[torch.Tensor], None]:
                return _times(factor, lambda tensor: emit(name, tensor))

            embed = to("embed", fam.embed_multiplier)
            if fam.one_norm and fam.ln_final:
                uses = itertools.cycle((embed, to("ln_final")))
                after(fam.ln_final, lambda tensor: next(uses)(tensor))
            else:
                after(fam.embed_ln or fam.embed, embed)
                if fam.encoder_ln_final:
                    after(fam.encoder_ln_final, to("ln_encoder"))
                if fam.ln_final:
                    after(fam.ln_final, to("ln_final"))
            if fam.pos_embed:
                after(fam.pos_embed, to("pos_embed"), table=True)
            for layer in range(d.n_layers):
                self._tap_block(layer, tap, before, after, emit)
            stack.enter_context(tap)
            yield

    def _tap_block(
        self,
        layer: int,
        tap: _AttentionTap,
        before: Callable[..., None],
        after: Callable[..., None],
        emit: OnSite,
    ) -> None:
        fam = self.family.of(layer)

        def at(path: str) -> str:
            return fam.at(path, layer)

        def to(kind: str) -> Callable[[torch.Tensor], None]:
            # What a branch adds to the stream, where a block scales it on its way.
            return _times(
                fam.multiplier(kind), lambda tensor: emit(f"blocks.{layer}.{kind}", tensor)
            )

        before(at(""), to("resid_pre"))
        after(at(""), to("resid_post"))
        if fam.ln_pre:
            after(at(fam.ln_pre), to("ln_pre"))
        if fam.ln1:
            after(at(fam.ln1), to("ln1"))
        if fam.attn:
            self._tap_attention(layer, tap, before, after, emit, to)
        if fam.mixer:
            after(at(fam.mixer), to("mixer_out"))
        if fam.mlp is None:
            return
        if fam.cross:
            self._tap_cross(layer, tap, before, after, emit, to)
        if fam.post_norm:
            assert fam.ln1 is not None
            after(at(fam.ln1), to("resid_mid"))
            if fam.ln2:
                after(at(fam.ln2), to("ln2"))
        elif fam.ln2:
            if not fam.parallel:
                # The sum after the MLP reads this tensor too, and no hook can replace it there:
                # an edit changes the tensor itself.
                before(at(fam.ln2), to("resid_cross" if fam.cross else "resid_mid"), shared=True)
            after(at(fam.ln2), to("ln2"))
        elif not fam.parallel:
            before(at(fam.mlp), to("resid_mid"), shared=True)
        self._tap_mlp(layer, before, after, to)
        if fam.per_layer_out:
            after(at(fam.per_layer_out), to("per_layer_out"))

    def _tap_attention(
        self,
        layer: int,
        tap: _AttentionTap,
        before: Callable[..., None],
        after: Callable[..., None],
        emit: OnSite,
        to: Callable[[str], Callable[[torch.Tensor], None]],
    ) -> None:
        fam, d = self.family.of(layer), self.dims.of(layer)
        assert fam.attn is not None

        def at(path: str) -> str:
            return fam.at(path, layer)

        def heads(kind: str, n: int | None) -> Callable[[torch.Tensor], None]:
            """Emit [batch, pos, n, d_head]; None: the tensor is so already."""
            return lambda t: emit(
                f"blocks.{layer}.{kind}", t if n is None else t.unflatten(-1, (n, d.d_head))
            )

        self._tap_projections(layer, before, after, heads, emit)
        if "attn.pattern" not in fam.notes:
            before(at(fam.attn), lambda _: tap.enter(layer))
            after(at(fam.attn), lambda _: tap.leave())
        if fam.o:
            before(at(fam.o), lambda t: to("attn.z")(t.unflatten(-1, (d.n_heads, d.d_head_v))))
        out = at(fam.o or fam.attn)
        if fam.ln1_post:
            after(out, to("attn.out"))
            after(at(fam.ln1_post), to("attn_out"))
        else:
            after(out, to("attn_out"))

    def _tap_cross(
        self,
        layer: int,
        tap: _AttentionTap,
        before: Callable[..., None],
        after: Callable[..., None],
        emit: OnSite,
        to: Callable[[str], Callable[[torch.Tensor], None]],
    ) -> None:
        """A decoder's attention to its encoder."""
        fam, d = self.family.of(layer), self.dims.of(layer)
        assert fam.cross
        assert fam.cross_o
        assert fam.ln_cross

        def heads(part: str) -> Callable[[torch.Tensor], None]:
            count = d.n_kv_heads if part in "kv" else d.n_heads
            return lambda t: emit(
                f"blocks.{layer}.cross_attn.{part}", t.unflatten(-1, (count, d.d_head))
            )

        if fam.post_norm:
            after(fam.at(fam.ln_cross, layer), to("resid_cross"))
        else:
            before(fam.at(fam.ln_cross, layer), to("resid_mid"), shared=True)
        after(fam.at(fam.ln_cross, layer), to("ln_cross"))
        for part in "qkv":
            after(fam.at(getattr(fam, f"cross_{part}"), layer), heads(part))
        before(fam.at(fam.cross, layer), lambda _: tap.enter(layer, "cross_attn"))
        after(fam.at(fam.cross, layer), lambda _: tap.leave())
        before(fam.at(fam.cross_o, layer), heads("z"))
        after(fam.at(fam.ln_cross_post or fam.cross_o, layer), to("cross_attn_out"))

    def _tap_projections(
        self,
        layer: int,
        before: Callable[..., None],
        after: Callable[..., None],
        heads: Callable[[str, int | None], Callable[[torch.Tensor], None]],
        emit: OnSite,
    ) -> None:
        fam, d = self.family.of(layer), self.dims.of(layer)
        counts = {"q": d.n_heads, "k": d.n_kv_heads, "v": d.n_kv_heads}
        if fam.qkv:

            def fused(tensor: torch.Tensor) -> None:
                for name, part in zip("qkv", split_fused(tensor, fam, d), strict=True):
                    version = part._version
                    emit(f"blocks.{layer}.attn.{name}", part)
                    if part._version == version:
                        continue
                    # What was copied out of the projection goes back.
                    if name == "q" and fam.qkv_layout == "grouped":
                        groups = tensor.unflatten(-1, (d.n_kv_heads, d.group + 2, d.d_head))
                        groups[..., :-2, :] = part.unflatten(-2, (d.n_kv_heads, d.group))
                    elif fam.qkv_layout == "quarters":
                        quarters = tensor.unflatten(-1, (4, 3, -1, d.d_head))
                        quarters[..., "qvk".index(name), :, :] = part.unflatten(-2, (4, -1))

            after(fam.at(fam.qkv, layer), fused)
        elif fam.kv_latent:

            def values(tensor: torch.Tensor) -> None:
                # [batch, (1,) pos, head * (unrotated key + value)]
                each = tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])
                own = each.unflatten(-1, (d.n_heads, -1))[..., -d.d_head_v :]
                emit(f"blocks.{layer}.attn.v", own)

            after(fam.at(fam.kv_latent, layer), values)
        elif fam.q:
            for name, count in counts.items():
                if f"attn.{name}" in fam.notes or getattr(fam, name) is None:
                    continue
                path = fam.at(getattr(fam, name), layer)
                if name == "q" and fam.q_gated:
                    after(path, lambda t: emit(f"blocks.{layer}.attn.q", split_gated(t, d)[0]))
                else:
                    after(path, heads(f"attn.{name}", count))
        if fam.v_norm:
            after(fam.at(fam.v_norm, layer), heads("attn.v_normed", None))
        if fam.q_norm and fam.q_norm == fam.k_norm:
            made = (
                _times(fam.q_multiplier, _transposed(emit, f"blocks.{layer}.attn.q_normed")),
                _transposed(emit, f"blocks.{layer}.attn.k_normed"),
            )
            calls = itertools.cycle(made)
            after(fam.at(fam.q_norm, layer), lambda tensor: next(calls)(tensor))
            return
        for name, norm in (("q", fam.q_norm), ("k", fam.k_norm)):
            if norm is None:
                continue
            kind, count = f"attn.{name}_normed", counts[name]
            if fam.qk_norm == "full":
                after(fam.at(norm, layer), heads(kind, count))
            elif fam.qk_norm == "per_head":
                after(fam.at(norm, layer), heads(kind, None))
            else:
                after(fam.at(norm, layer), _transposed(emit, f"blocks.{layer}.{kind}"))
            if fam.qk_norm_rotated:
                rotated = _transposed(emit, f"blocks.{layer}.attn.rot_{name}")
                before(fam.at(norm, layer), rotated)

    def _tap_mlp(
        self,
        layer: int,
        before: Callable[..., None],
        after: Callable[..., None],
        to: Callable[[str], Callable[[torch.Tensor], None]],
    ) -> None:
        fam = self.family.of(layer)
        assert fam.mlp is not None

        def at(path: str) -> str:
            return fam.at(path, layer)

        out = at(fam.mlp_contribution or fam.mlp)
        if fam.ln2_post:
            after(out, to("mlp.out"))
            after(at(fam.ln2_post), to("mlp_out"))
        else:
            after(out, to("mlp_out"))
        if fam.router:
            after(at(fam.router), to("mlp.router_logits"), fam.router_output)
        if fam.gate_up:

            def gate_up(tensor: torch.Tensor) -> None:
                # Slices: autograd lets no part that chunk() returns be edited in place.
                half = tensor.shape[-1] // 2
                gate, up = tensor[..., :half], tensor[..., half:]
                to("mlp.pre")(gate)
                to("mlp.pre_linear")(up)

            after(at(fam.gate_up), gate_up)
        elif fam.gate and fam.up:
            after(at(fam.gate), to("mlp.pre"))
            after(at(fam.up), to("mlp.pre_linear"))
        elif fam.up:
            after(at(fam.up), to("mlp.pre"))
        if fam.down:
            before(at(fam.down), to("mlp.post"))


def _times(factor: float, use: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
    """Emit what the stream receives of a tensor that is multiplied on its way."""
    if factor == 1.0:
        return use

    def scaled(tensor: torch.Tensor) -> None:
        shown = tensor * factor
        version = shown._version
        use(shown)
        if shown._version != version:
            tensor.copy_(shown / factor)

    return scaled


def _editing(
    emit: OnSite, prompt: Prompt, edits: Edits, by_tap: tuple[str, ...], fam: Family
) -> OnSite:
    """Edit a site, then emit it. Layouts are views: an edit of the view is one of the tensor.

    Args:
        by_tap: ends of the names of sites that the attention tap edits itself.
    """

    def edit_inside(name: str, view: torch.Tensor) -> None:
        edit = edits.get(name)
        if edit is not None:
            view.copy_(edit(view.clone()))

    shaped_edit = shaped(edit_inside, prompt, fam)

    def both(name: str, tensor: torch.Tensor) -> None:
        if not name.endswith(by_tap):
            shaped_edit(name, tensor)
        emit(name, tensor)

    return both


def _transposed(emit: OnSite, name: str) -> Callable[[torch.Tensor], None]:
    """Emit [batch, head, pos, d_head] as [batch, pos, head, d_head]."""
    return lambda tensor: emit(name, tensor.transpose(1, 2))


def load(
    checkpoint: Path,
    architecture: str,
    dtype: torch.dtype,
    attention: str = "eager",
    trust_remote_code: bool = False,
) -> Any:
    """Load a checkpoint with HuggingFace transformers, on the CPU, in eval mode.

    Raises:
        ImplementationError: another architecture than stated, or weights missing, unexpected
            or of another shape.
    """
    import transformers

    config = read_config(checkpoint, trust_remote_code=trust_remote_code)
    stated = list(config.architectures or [])
    if architecture not in stated:
        raise ImplementationError(
            f"{checkpoint} holds {', '.join(stated) or 'no architecture'}, "
            f"models.toml says {architecture}",
            "correct `architecture` of this model in models.toml",
        )
    whole = HEADLESS.get(architecture, architecture)
    cls = model_class(whole) or transformers.AutoModelForCausalLM
    overrides: dict[str, Any] = {}
    if dtype == torch.float64 and getattr(config, "reorder_and_upcast_attn", False):
        # The same sums in float32, in another order; GPT-2 raises where scores are wider.
        overrides["reorder_and_upcast_attn"] = False
    with promoted(dtype):
        model, info = cls.from_pretrained(
            checkpoint,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **overrides,
        )
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if problems:
        raise ImplementationError(
            f"{checkpoint} did not load whole: {problems}",
            "the weights file does not belong to this config, or is damaged",
        )
    return settled(model.eval())
