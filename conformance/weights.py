"""A reference's parameters in TransformerLens's names and shapes, by the layout that
``conformance/families`` states.

Every rearrangement is a bijection between a HuggingFace parameter and one or more canonical
weights; :func:`canonical` records which parameter each weight came from, so that a parameter
that nobody claims is found.

Shapes: ``W_Q`` [head, d_model, d_head], ``W_K``/``W_V`` [kv_head, d_model, d_head], ``W_O``
[head, d_head, d_model], ``W_in``/``W_gate`` [d_model, d_mlp], ``W_out`` [d_mlp, d_model],
``W_E`` [d_vocab, d_model], ``W_U`` [d_model, d_vocab]; biases without the input dimension.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import einops

from conformance.errors import FamilyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from conformance.families import Dims, Family


#: Norms of a block, by the fields of a family.
_NORMS = ("ln_pre", "ln1", "ln1_post", "ln_cross", "ln_cross_post", "ln2", "ln2_post")


@dataclass(frozen=True)
class Weight:
    """One canonical weight and the HuggingFace parameter it is a rearranged part of."""

    tensor: torch.Tensor
    source: str


def split_fused(
    tensor: torch.Tensor, fam: Family, d: Dims
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the last dimension of a fused projection's output into q, k, v.

    Args:
        tensor: [..., (heads + 2 kv_heads) * d_head], laid out as ``fam.qkv_layout``.

    Returns:
        [..., head, d_head], [..., kv_head, d_head], [..., kv_head, d_head].
    """
    if fam.qkv_layout == "concat":
        # Slices: autograd lets no part that split() returns be edited in place.
        heads = tensor.unflatten(-1, (-1, d.d_head))
        k_at, v_at = d.n_heads, d.n_heads + d.n_kv_heads
        return heads[..., :k_at, :], heads[..., k_at:v_at, :], heads[..., v_at:, :]
    if fam.qkv_layout == "per_head":
        parts = tensor.unflatten(-1, (d.n_heads, 3, d.d_head))
        return parts[..., 0, :], parts[..., 1, :], parts[..., 2, :]
    if fam.qkv_layout == "quarters":
        q, v, k = tensor.unflatten(-1, (4, 3, -1, d.d_head)).unbind(-3)
        return q.flatten(-3, -2), k.flatten(-3, -2), v.flatten(-3, -2)
    groups = tensor.unflatten(-1, (d.n_kv_heads, d.group + 2, d.d_head))
    return groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :]


def split_gated(tensor: torch.Tensor, d: Dims) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the last dimension of a projection's output into queries and their gates.

    Args:
        tensor: [..., heads * 2 * d_head], a head's query before its gate.

    Returns:
        Both [..., head, d_head].
    """
    parts = tensor.unflatten(-1, (d.n_heads, 2, d.d_head))
    return parts[..., 0, :], parts[..., 1, :]


def canonical(parameters: Mapping[str, torch.Tensor], fam: Family, d: Dims) -> dict[str, Weight]:
    """All parameters under TransformerLens's names.

    Args:
        parameters: HuggingFace name -> tensor, tied parameters once.

    Raises:
        FamilyError: a module that the family names has no weight.
    """
    out: dict[str, Weight] = {}

    def get(path: str, what: str) -> tuple[str, torch.Tensor | None]:
        key = f"{path}.{what}"
        return key, parameters.get(key)

    def norm(name: str, path: str | None) -> None:
        if path is None:
            return
        for what, short in (("weight", "w"), ("bias", "b")):
            key, tensor = get(path, what)
            if tensor is not None:
                out[f"{name}.{short}"] = Weight(tensor, key)

    def linear(path: str) -> tuple[str, torch.Tensor]:
        """A projection's weight as [out, in], whatever way it is stored."""
        key, tensor = get(path, "weight")
        if tensor is None:
            hint = "correct conformance/families"
            raise FamilyError(f"{fam.architecture}: no parameter {key}", hint)
        head = fam.unembed is not None and path.startswith(fam.unembed)
        return key, tensor.T if fam.conv1d and not head else tensor

    def dense(name: str, path: str, w: str, b: str) -> None:
        key, weight = linear(path)
        out[f"{name}.{w}"] = Weight(weight.T, key)
        bias_key, bias = get(path, "bias")
        if bias is not None:
            out[f"{name}.{b}"] = Weight(bias, bias_key)

    key, table = get(fam.embed_weight or fam.embed, "weight")
    if table is not None:
        out["embed.W_E"] = Weight(table, key)
    if fam.pos_embed:
        key, table = get(fam.pos_embed, "weight")
        if table is not None:
            out["pos_embed.W_pos"] = Weight(table, key)
    norm("embed_ln", fam.embed_ln)
    whole, sizes = fam, d
    for layer in range(d.n_layers):
        fam = whole.of(layer)
        name = f"blocks.{layer}"
        for part in _NORMS:
            path = getattr(fam, part)
            norm(f"{name}.{part}", None if path is None else fam.at(path, layer))
        d = sizes.of(layer)
        if fam.attn:
            _attention(out, f"{name}.attn", layer, parameters, fam, d, linear)
        if fam.cross:
            own = {part: getattr(fam, f"cross_{part}") for part in "qkvo"}
            crossing = dataclasses.replace(fam, attn=fam.cross, qkv=None, **own)
            _attention(out, f"{name}.cross_attn", layer, parameters, crossing, d, linear)
        for part in ("q_norm", "k_norm", "v_norm"):
            path = getattr(fam, part)
            norm(f"{name}.attn.{part}", None if path is None else fam.at(path, layer))
        norm(f"{name}.attn.o_norm", None if fam.o_norm is None else fam.at(fam.o_norm, layer))
        down_norm = None if fam.down_norm is None else fam.at(fam.down_norm, layer)
        norm(f"{name}.mlp.down_norm", down_norm)
        _as_they_are(out, name, layer, parameters, fam)
        if fam.experts:
            _experts(out, name, layer, parameters, fam, d)
            if fam.shared:
                shared = fam.at(fam.shared, layer)
                for part, w in (("gate", "W_gate"), ("up", "W_in"), ("down", "W_out")):
                    dense(f"{name}.mlp.shared", f"{shared}.{part}_proj", w, f"b{w[1:]}")
            if fam.shared_gate:
                dense(f"{name}.mlp", fam.at(fam.shared_gate, layer), "W_shared", "b_shared")
        if fam.gate_up:
            key, weight = linear(fam.at(fam.gate_up, layer))
            gate, up = weight.T.chunk(2, dim=-1)
            out[f"{name}.mlp.W_gate"] = Weight(gate, key)
            out[f"{name}.mlp.W_in"] = Weight(up, key)
        else:
            if fam.gate:
                dense(f"{name}.mlp", fam.at(fam.gate, layer), "W_gate", "b_gate")
            if fam.up:
                dense(f"{name}.mlp", fam.at(fam.up, layer), "W_in", "b_in")
        if fam.down:
            dense(f"{name}.mlp", fam.at(fam.down, layer), "W_out", "b_out")
    fam = whole
    for tower in (*fam.towers, fam.transform, fam.type_embed):
        if tower is None:
            continue
        for key, tensor in parameters.items():
            if key == tower or key.startswith(f"{tower}."):
                out[key] = Weight(tensor, key)
    norm("ln_encoder", fam.encoder_ln_final)
    norm("ln_final", fam.ln_final)
    if fam.head:
        for key, tensor in parameters.items():
            if key.startswith(f"{fam.head}."):
                out[f"head{key.removeprefix(fam.head)}"] = Weight(tensor, key)
    if fam.unembed is None:
        return out
    key, head = get(fam.unembed_weight or fam.unembed, "weight")
    if head is None:  # tied: the embedding serves
        key, head = out["embed.W_E"].source, out["embed.W_E"].tensor
    out["unembed.W_U"] = Weight(head.T, key)
    key, bias = get(fam.unembed, "bias")
    if fam.unembed_bias:
        key, bias = fam.unembed_bias, parameters[fam.unembed_bias].flatten()
    if bias is not None:
        out["unembed.b_U"] = Weight(bias, key)
    return out


def _as_they_are(
    out: dict[str, Weight],
    name: str,
    layer: int,
    parameters: Mapping[str, torch.Tensor],
    fam: Family,
) -> None:
    """Parameters that have no canonical form keep their name and their shape."""
    named = (fam.stream_scale, *fam.unnamed)
    kept = {"mixer": fam.mixer, **{path: path for path in named if path}}
    for part, path in kept.items():
        if path is None:
            continue
        start = fam.at(path, layer)
        for key, tensor in parameters.items():
            if key == start or key.startswith(f"{start}."):
                out[f"{name}.{part}{key.removeprefix(start)}"] = Weight(tensor, key)


def _attention(
    out: dict[str, Weight],
    name: str,
    layer: int,
    parameters: Mapping[str, torch.Tensor],
    fam: Family,
    d: Dims,
    linear: object,
) -> None:
    assert callable(linear)
    counts = {"q": d.n_heads, "k": d.n_kv_heads, "v": d.n_kv_heads}
    if fam.qkv:
        path = fam.at(fam.qkv, layer)
        key, weight = linear(path)
        bias = parameters.get(f"{path}.bias")
        weights = split_fused(weight.T, fam, d)
        biases = None if bias is None else split_fused(bias, fam, d)
        for i, letter in enumerate("QKV"):
            out[f"{name}.W_{letter}"] = Weight(
                einops.rearrange(weights[i], "d_model h d_head -> h d_model d_head"), key
            )
            if biases is not None:
                out[f"{name}.b_{letter}"] = Weight(biases[i], f"{path}.bias")
    elif fam.q:
        for part, count in counts.items():
            if getattr(fam, part) is None:
                continue  # another layer's, or made of what another projection gives
            path = fam.at(getattr(fam, part), layer)
            key, weight = linear(path)
            bias = parameters.get(f"{path}.bias")
            if part == "q" and fam.q_gated:
                _gated_queries(out, name, path, weight, bias, d)
                continue
            out[f"{name}.W_{part.upper()}"] = Weight(
                einops.rearrange(weight, "(h d_head) d_model -> h d_model d_head", h=count), key
            )
            if bias is not None:
                out[f"{name}.b_{part.upper()}"] = Weight(
                    bias.unflatten(0, (count, d.d_head)), f"{path}.bias"
                )
    if fam.o:
        path = fam.at(fam.o, layer)
        key, weight = linear(path)
        out[f"{name}.W_O"] = Weight(
            einops.rearrange(weight, "d_model (h d_head) -> h d_head d_model", h=d.n_heads), key
        )
        bias = parameters.get(f"{path}.bias")
        if bias is not None:
            out[f"{name}.b_O"] = Weight(bias, f"{path}.bias")
    if fam.sinks and fam.attn:
        key = f"{fam.at(fam.attn, layer)}.{fam.sinks}"
        out[f"{name}.sinks"] = Weight(parameters[key], key)


def _gated_queries(
    out: dict[str, Weight],
    name: str,
    path: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    d: Dims,
) -> None:
    for what, part in zip(("Q", "QG"), split_gated(weight.T, d), strict=True):
        own = einops.rearrange(part, "d_model h d_head -> h d_model d_head")
        out[f"{name}.W_{what}"] = Weight(own, f"{path}.weight")
    if bias is not None:
        for what, part in zip(("Q", "QG"), split_gated(bias, d), strict=True):
            out[f"{name}.b_{what}"] = Weight(part, f"{path}.bias")


def _experts(
    out: dict[str, Weight],
    name: str,
    layer: int,
    parameters: Mapping[str, torch.Tensor],
    fam: Family,
    d: Dims,
) -> None:
    assert fam.router is not None
    assert fam.experts is not None
    router, experts = fam.at(fam.router, layer), fam.at(fam.experts, layer)
    out[f"{name}.mlp.W_router"] = Weight(parameters[f"{router}.weight"].T, f"{router}.weight")
    if f"{router}.bias" in parameters:
        out[f"{name}.mlp.b_router"] = Weight(parameters[f"{router}.bias"], f"{router}.bias")
    both, down = (f"{experts}.{own}" for own in fam.expert_names)
    for e in range(d.n_experts):
        at = f"{name}.mlp.experts.{e}"
        if fam.expert_layout == "modules":
            for w, path in (("W_in", both), ("W_out", down)):
                key = f"{path.format(e=e)}.weight"
                out[f"{at}.{w}"] = Weight(parameters[key].T, key)
            continue
        if fam.expert_layout == "gate_up_out_in":
            gate, up = parameters[both][e].T.chunk(2, dim=-1)
            w_out = parameters[down][e].T
        elif fam.expert_layout == "gate_up_in_out":
            gate, up = parameters[both][e].chunk(2, dim=-1)
            w_out = parameters[down][e]
        else:
            fused = parameters[both][e]
            gate, up, w_out = fused[:, ::2], fused[:, 1::2], parameters[down][e]
            bias = parameters[f"{both}_bias"][e]
            out[f"{at}.b_gate"] = Weight(bias[::2], f"{both}_bias")
            out[f"{at}.b_in"] = Weight(bias[1::2], f"{both}_bias")
            out[f"{at}.b_out"] = Weight(parameters[f"{down}_bias"][e], f"{down}_bias")
        out[f"{at}.W_gate"] = Weight(gate, both)
        out[f"{at}.W_in"] = Weight(up, both)
        out[f"{at}.W_out"] = Weight(w_out, down)
