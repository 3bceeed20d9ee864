"""Every reference parameter is in the port, exactly once and exactly equal, and nothing else is.

Three views of the port are held against the reference: the weights under TransformerLens's
names (``blocks.0.attn.W_Q``), the parameters that the forward pass uses, and the accessors
people call (``model.W_Q``, ``model.blocks[0].attn.W_K``).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import einops
import torch

from conformance import bounds
from conformance.checks.base import Check, Context, declines, structure
from conformance.metrics import difference
from conformance.records import Comparison
from conformance.weights import Weight, canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.families import Dims, Family


class Weights(Check):
    """Weights equal the checkpoint's, in every view of the port."""

    name: ClassVar[str] = "weights"
    of_content: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = True

    def weights(self, context: Context) -> Iterable[Comparison]:
        subject = context.subject
        fam, d = subject.family, subject.dims
        expected = canonical(context.parameters, fam, d)
        yield from _unclaimed(context, expected)
        port = subject.convention(expected)
        named: dict[str, torch.Tensor] = {}
        with self.port("reading the weights by their names", sizes=subject.dims):
            named = subject.named_weights()
        raw = {**subject.raw_parameters(), **subject.raw_buffers()}
        held: set[str] = set()
        filled: list[str] = []
        for name, tensor in named.items():
            if name in port:
                held.add(name)
                value = port[name].tensor
                if name == "pos_embed.W_pos" and tensor.shape[0] == value.shape[0] + fam.pos_offset:
                    value = expected[name].tensor  # with the rows before position 0
                yield _equal(name, value, tensor, port[name].derived)
            elif _neutral(name, tensor):
                filled.append(name)
            else:
                yield structure(name, "the port has this weight, the checkpoint does not")
        if subject.raw_is_separate:
            yield from self._raw(context, expected, raw)
        else:
            for name in port:
                if name not in held:
                    yield structure(name, "the checkpoint has this weight, the port does not")
        yield from self._accessors(context, port)
        self.metrics |= {
            "parameters": len(context.parameters),
            "canonical": len(expected),
            "named": len(named),
            "filled_in": sorted({_layerless(n) for n in filled}),
        }

    def _raw(
        self, context: Context, expected: Mapping[str, Weight], raw: Mapping[str, torch.Tensor]
    ) -> Iterable[Comparison]:
        """The parameters that the forward pass uses, by HuggingFace's names and split parts."""
        fam, d = context.subject.family, context.subject.dims
        known = context.parameters
        parts, sources = split_names(expected, fam, d)
        renamed = renamed_modules(fam, d)
        held: set[str] = set()
        for name, tensor in raw.items():
            original = renamed.get(name.rsplit(".", 1)[0])
            key = f"{original}.{name.rsplit('.', 1)[1]}" if original else name
            if key in known:
                held.add(key)
                yield _equal(name, known[key], tensor)
            elif name in parts:
                held.add(sources[name])
                yield _equal(name, parts[name], tensor)
            elif bool((tensor != 0).any()):
                yield structure(name, "the port has this parameter, the checkpoint does not")
        for key in known:
            if key not in held:
                yield structure(key, "the checkpoint has this parameter, the port does not")

    def _accessors(self, context: Context, port: Mapping[str, Any]) -> Iterable[Comparison]:
        """``model.W_Q`` and its like: stacked over layers, grouped heads repeated."""
        subject = context.subject
        d = subject.dims
        for name, get in subject.accessors():
            shown = f"model.{name}" if "." not in name else name.replace("blocks.", "model.blocks.")
            expected = _accessor_value(name, port, d, grouped=False)
            if expected is None:
                continue
            try:
                found = get()
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if declines(error, d):
                    self.not_applicable(shown, f"the library declines: {error}")
                else:
                    note = f"the accessor raised {type(error).__name__}: {error}"
                    yield structure(shown, note)
                continue
            if not isinstance(found, torch.Tensor):
                yield structure(shown, f"the accessor gave {type(found).__name__}, not a tensor")
                continue
            if found.shape != expected[0].shape and name.endswith(("K", "V")):
                # Both layouts are documented: one entry per key/value head, or per query head.
                expected = _accessor_value(name, port, d, grouped=True) or expected
            yield _equal(shown, expected[0], found.detach(), expected[1])


#: Said of a parameter that our description of the architecture does not cover.
UNCLAIMED = "a parameter that nobody accounts for"


def _neutral(name: str, tensor: torch.Tensor) -> bool:
    """Whether a weight that the checkpoint lacks has the value that changes nothing.

    Zero for biases and tables; one for the weight of a norm (OLMo's norms have none).
    """
    value = 1 if ".ln" in f".{name}" and name.endswith(".w") else 0
    return not bool((tensor != value).any())


def _layerless(name: str) -> str:
    parts = name.split(".")
    return ".".join("*" if p.isdigit() else p for p in parts)


def _unclaimed(context: Context, expected: Mapping[str, Weight]) -> Iterable[Comparison]:
    """``conformance/families`` must account for every element of every parameter exactly once."""
    claimed: Counter[str] = Counter()
    for name, weight in expected.items():
        if not (name == "unembed.W_U" and context.tied_unembed):
            claimed[weight.source] += weight.tensor.numel()
    for key, tensor in context.parameters.items():
        if claimed[key] != tensor.numel():
            yield structure(
                key,
                f"conformance/families claims {claimed[key]} of its {tensor.numel()} elements: "
                f"{UNCLAIMED}",
            )


def _equal(
    name: str, expected: torch.Tensor, found: torch.Tensor, derived: bool = False
) -> Comparison:
    if expected.shape != found.shape:
        return structure(
            name, f"shape {tuple(found.shape)}, the checkpoint's is {tuple(expected.shape)}"
        )
    allowed = bounds.DERIVED_WEIGHT_ULP * bounds.EPS["float64"] if derived else 0.0
    if torch.equal(expected.to(found.dtype), found):
        return Comparison("exact", name, None, 0.0, allowed, True, bound="exact")
    d = difference(expected, found, row_dims=1 if expected.ndim else 0)
    return Comparison(
        judgement="exact",
        site=name,
        prompt=None,
        measured=d.rel_max,
        allowed=allowed,
        ok=d.rel_max <= allowed,
        index=d.index,
        reference=d.reference,
        subject=d.subject,
        bound="two roundings of one derived operation" if derived else "exact",
    )


def split_names(
    expected: Mapping[str, Weight], fam: Family, d: Dims
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Parts of fused projections that a port may keep: its parameter name -> value, source.

    Projections are laid out as ``torch.nn.Linear``: [out, in].
    """
    parts: dict[str, torch.Tensor] = {}
    sources: dict[str, str] = {}

    def put(name: str, weight: Weight | None, tensor: torch.Tensor | None) -> None:
        if weight is not None and tensor is not None:
            parts[name], sources[name] = tensor, weight.source

    for layer in range(d.n_layers):
        own = fam.of(layer)
        if own.qkv and own.attn:
            attn = own.at(own.attn, layer)
            for letter in "QKV":
                w = expected[f"blocks.{layer}.attn.W_{letter}"]
                flat = einops.rearrange(w.tensor, "h d_model d_head -> (h d_head) d_model")
                put(f"{attn}.{letter.lower()}.weight", w, flat)
                b = expected.get(f"blocks.{layer}.attn.b_{letter}")
                put(f"{attn}.{letter.lower()}.bias", b, None if b is None else b.tensor.flatten())
        if own.gate_up and own.mlp:
            mlp = own.at(own.mlp, layer)
            for port, name in (("gate", "W_gate"), ("in", "W_in")):
                w = expected[f"blocks.{layer}.mlp.{name}"]
                put(f"{mlp}.{port}.weight", w, w.tensor.T)
    return parts, sources


def renamed_modules(fam: Family, d: Dims) -> dict[str, str]:
    """Modules that the bridge installs under another name: its path -> HuggingFace's."""
    found: dict[str, str] = {}
    for layer in range(d.n_layers):
        own = fam.of(layer)
        if own.qkv and own.attn and own.o:
            attn = own.at(own.attn, layer)
            found[f"{attn}.qkv"] = own.at(own.qkv, layer)
            found[f"{attn}.o"] = own.at(own.o, layer)
    return found


def _accessor_value(
    name: str, port: Mapping[str, Any], d: Dims, *, grouped: bool
) -> tuple[torch.Tensor, bool] | None:
    """What an accessor must give: (value, derived), or None where the checkpoint has no such.

    Args:
        grouped: keys and values one per key/value head, rather than repeated per query head.
    """
    whole = {
        "W_E": "embed.W_E",
        "W_U": "unembed.W_U",
        "b_U": "unembed.b_U",
        "W_pos": "pos_embed.W_pos",
    }

    def one(key: str) -> tuple[torch.Tensor, bool] | None:
        weight = port.get(key)
        if weight is None:
            weight = port.get(key.replace("attn.W_", "attn._W_").replace("attn.b_", "attn._b_"))
        if weight is None:
            return None
        tensor = weight.tensor
        own = d.of(int(key.split(".")[1])) if key.startswith("blocks.") else d
        if key.endswith(("W_K", "W_V", "b_K", "b_V")):
            if grouped and tensor.shape[0] == d.n_heads:
                tensor = tensor[:: own.group]
            elif not grouped and tensor.shape[0] != d.n_heads:
                tensor = tensor.repeat_interleave(own.group, dim=0)
        return tensor, weight.derived

    if name in whole:
        return one(whole[name])
    if name.startswith("blocks."):
        return one(name)
    part = "attn" if name[-1] in "QKVO" else "mlp"
    layers = [one(f"blocks.{i}.{part}.{name}") for i in range(d.n_layers)]
    found = [x for x in layers if x is not None]
    if len({tuple(x[0].shape) for x in found}) != 1 or len(found) < d.n_layers:
        return None
    return torch.stack([t for t, _ in found]), any(x for _, x in found)
