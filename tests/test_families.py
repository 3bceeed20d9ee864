"""families.py and the rearrangement of weights, proved on every twin by recomputing the model.

Nothing of TransformerLens is used here: the canonical weights must reproduce what HuggingFace
computes, and the twins must be such that a wrong weight would show.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from fakes import ROOT
from mixtures import beside_an_mlp, correction, mixture, per_token, scored
from twins import checkpoint, described, huggingface, ran, reads

from conformance.checkpoints.twin_catalogue import TWINS, WINDOW
from conformance.diagnose import facts
from conformance.errors import FamilyError
from conformance.families import architectures, family
from conformance.prompts import MEDIA
from conformance.sites import BLOCK_KINDS, GLOBAL_KINDS, parse
from conformance.spec import TwinSource, load_spec
from conformance.weights import canonical

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.families import Family

LAYER = 1
every_twin = pytest.mark.parametrize("twin", TWINS)
Weights = dict[str, torch.Tensor]


@pytest.fixture
def weights(twin: str, twin_cache: Path) -> Weights:
    model = huggingface(twin, twin_cache)
    found = canonical(model.parameters(), model.family, model.dims)
    return {name: weight.tensor for name, weight in found.items()}


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


# --- The lists agree ----------------------------------------------------------------------------


def test_every_described_architecture_has_a_twin_and_the_other_way_round() -> None:
    assert {t.architecture for t in TWINS.values()} == set(architectures())


def test_every_twin_is_judged_by_default() -> None:
    models = load_spec(ROOT / "models.toml").models
    listed = {m.source.twin: m.architecture for m in models if isinstance(m.source, TwinSource)}
    assert listed == {name: t.architecture for name, t in TWINS.items()}


def test_an_unknown_architecture_is_refused_with_advice() -> None:
    with pytest.raises(FamilyError, match="NopeForCausalLM") as caught:
        family("NopeForCausalLM", None)
    assert "twin" in caught.value.hint


# --- Paths and sites ----------------------------------------------------------------------------

_IN_BLOCK = (
    *("attn", "o", "mixer", "mlp", "ln1", "ln1_post", "ln2", "ln2_post", "q", "k", "v", "qkv"),
    *("q_norm", "k_norm", "up", "down", "gate", "gate_up", "mlp_contribution", "router", "experts"),
    *("shared", "shared_gate", "kv_latent", "attn_gate", "o_norm", "down_norm"),
    *(
        "ln_pre",
        "receptance",
        "ln_cross",
        "ln_cross_post",
        "cross",
        "cross_q",
        "cross_k",
        "cross_v",
        "cross_o",
        "v_norm",
        "per_layer",
        "per_layer_out",
    ),
)
_GLOBAL = (
    *("embed", "ln_final", "head", "unembed", "pos_embed", "embed_ln"),
    *("type_embed", "transform", "encoder_ln_final", "embed_weight", "unembed_weight"),
)
_NO_PATHS = {
    "architecture",
    "block",
    "sinks",
    "stream_scale",
    "relative",
    "qkv_layout",
    "qk_norm",
    "expert_layout",
    "attn_gate_by",
    "unembed_bias",
    "reads",
}


@every_twin
def test_every_path_exists(twin: str, twin_cache: Path) -> None:
    model = huggingface(twin, twin_cache)
    fam, modules = model.family, dict(model.model.named_modules())
    texts = {
        f.name for f in dataclasses.fields(fam) if isinstance(getattr(fam, f.name), str)
    } - _NO_PATHS
    assert texts <= {*_IN_BLOCK, *_GLOBAL}, "a field of Family that this test does not know"
    for name in _GLOBAL:
        path = getattr(fam, name)
        assert path is None or path in modules, name
    assert not fam.layers or len(fam.layers) == model.dims.n_layers
    for layer in range(model.dims.n_layers):
        own = fam.of(layer)
        assert own.at("", layer) in modules
        for name in _IN_BLOCK:
            path = getattr(own, name)
            assert path is None or own.at(path, layer) in modules, name
        if own.relative:  # every layer of a stack has its first one's table
            first = 0 if layer < fam.encoder else fam.encoder
            assert fam.of(first).at(own.relative, first) in modules
        if own.stream_scale:
            assert own.at(own.stream_scale, layer) in model.parameters()
        if own.kv_from is not None:
            assert fam.of(own.kv_from).kv_from is None
            assert own.kv_from < layer
        if own.sinks:
            assert own.attn is not None
            assert f"{own.at(own.attn, layer)}.{own.sinks}" in model.parameters()
    assert fam.at("", model.dims.n_layers) not in modules, "more layers than dims say"


@every_twin
@pytest.mark.parametrize("prompt", ["sixteen", "padded_left", MEDIA])
def test_every_site_fires_once_with_its_shape(twin: str, prompt: str, twin_cache: Path) -> None:
    fam, d = described(twin, twin_cache)
    if not reads(twin, twin_cache, prompt):
        return  # text alone; or whole images and waves, without padding
    found = ran(twin, twin_cache, prompt)
    due = {k.name for k in GLOBAL_KINDS if k.name not in {*fam.absent(), "logits"}}
    for layer in range(d.n_layers):
        absent = fam.absent(layer)
        assert all(absent.values())
        due |= {f"blocks.{layer}.{k.name}" for k in BLOCK_KINDS if k.name not in absent}
    assert set(found.sites) == due
    assert {name for name, values in found.sites.items() if len(values) != 1} == set()
    batch, pos = found.prompt.tokens.shape
    common = {
        **{"batch": batch, "pos": pos, "query": pos, "key": pos, "token": batch * pos},
        **{"d_model": d.d_model, "expert": d.n_experts, "d_vocab": d.d_vocab},
    }
    for name in due:
        shape = found[name].shape
        site = parse(name)
        own = d if site.layer is None else d.of(site.layer)
        heads = {"head": own.n_heads, "kv_head": own.n_kv_heads}
        sizes = common | heads | {"d_head": own.d_head, "d_head_v": own.d_head_v}
        axes = site.axes
        assert len(shape) == len(axes), name
        wrong = {a: n for a, n in zip(axes, shape, strict=True) if sizes.get(a, n) != n}
        assert not wrong, (name, wrong)
    assert found.logits.shape == (batch, pos, d.d_vocab)
    for layer in range(d.n_layers):
        at = f"blocks.{layer}.mlp.p"
        mlp = {tuple(v[0].shape) for n, v in found.sites.items() if n.startswith(at)}
        assert len(mlp) <= 1, "pre, pre_linear and post of one width"


# --- The rearrangement is a bijection -----------------------------------------------------------


@every_twin
def test_every_element_of_every_parameter_is_used_exactly_once(twin: str, twin_cache: Path) -> None:
    model = huggingface(twin, twin_cache)
    numbered, start = {}, 0
    for name, parameter in model.parameters().items():
        numbered[name] = torch.arange(start, start + parameter.numel()).reshape(parameter.shape)
        start += parameter.numel()
    found = canonical(numbered, model.family, model.dims)
    if model.tied_unembed():
        tied = found.pop("unembed.W_U")
        assert torch.equal(tied.tensor, found["embed.W_E"].tensor.T)
    ids = torch.cat([weight.tensor.flatten() for weight in found.values()])
    assert ids.numel() == start, "element counts"
    assert torch.equal(ids.sort().values, torch.arange(start))
    for name, weight in found.items():
        source = numbered[weight.source]
        assert source.min() <= weight.tensor.min() <= weight.tensor.max() <= source.max(), name


# --- The canonical weights are the model --------------------------------------------------------


@every_twin
def test_the_weights_reproduce_attention(twin: str, twin_cache: Path, weights: Weights) -> None:
    whole, d = described(twin, twin_cache)
    for layer in range(d.n_layers):
        if whole.of(layer).attn:
            _reproduces_attention(twin, twin_cache, weights, layer)


def _reproduces_attention(twin: str, twin_cache: Path, weights: Weights, layer: int) -> None:
    whole, d = described(twin, twin_cache)
    fam, found = whole.of(layer), ran(twin, twin_cache)
    at = f"blocks.{layer}."
    x = found[at + fam.attn_reads]
    for letter in "QKV" if fam.q or fam.qkv else "":
        if f"attn.{letter.lower()}" in fam.absent():
            continue
        read = x + found["pos_embed"] if fam.shortformer and letter in "QK" else x
        value = torch.einsum("bpm,hmd->bphd", read, weights[f"{at}attn.W_{letter}"])
        value = value + weights.get(f"{at}attn.b_{letter}", 0)
        same(value, found[f"{at}attn.{letter.lower()}"])
    if fam.o is None:
        return
    z = found[at + "attn.z"]
    out = torch.einsum("bphd,hdm->bpm", z, weights[at + "attn.W_O"])
    out = (out + weights.get(at + "attn.b_O", 0)) * fam.multiplier("attn_out")
    same(out, found[at + ("attn.out" if fam.ln1_post else "attn_out")])
    if not (fam.q or fam.qkv or fam.kv_latent) or "attn.pattern" in fam.notes:
        return
    # Which key/value head belongs to which query head, seen where they meet.
    source = layer if fam.kv_from is None else fam.kv_from
    normed = whole.of(source).v_norm is not None
    v = found[f"blocks.{source}.attn.{'v_normed' if normed else 'v'}"]
    if normed:  # without a weight, of the values or of the keys that are them
        before = "k" if "attn.v" in whole.absent(source) else "v"
        rule = facts.norm(huggingface(twin, twin_cache).config, fam)
        same(rule(found[f"blocks.{source}.attn.{before}"]), v)
    if clip := getattr(huggingface(twin, twin_cache).config, "clip_qkv", None):
        v = v.clamp(-clip, clip)
    v = v.repeat_interleave(d.of(layer).group, dim=2)
    mixed = torch.einsum("bhqk,bkhd->bqhd", found[at + "attn.pattern"], v)
    if fam.o_norm:
        rule = facts.norm(huggingface(twin, twin_cache).config, fam)
        mixed = rule(mixed.flatten(-2), weights[at + "attn.o_norm.w"]).unflatten(-1, z.shape[-2:])
    if fam.attn_gate:
        gate = x @ weights[f"{at}{fam.attn_gate}.weight"].T
        soft = torch.nn.functional.softplus
        gate = gate.sigmoid() if fam.attn_gate_by == "sigmoid" else soft(gate)
        mixed = mixed * gate.unflatten(-1, (d.n_heads, -1))
    if fam.q_gated:
        gate = torch.einsum("bpm,hmd->bphd", x, weights[at + "attn.W_QG"])
        mixed = mixed * torch.sigmoid(gate + weights.get(at + "attn.b_QG", 0))
    same(mixed, z)


@every_twin
def test_streams_are_the_sums_that_are_described(
    twin: str, twin_cache: Path, weights: Weights
) -> None:
    """With a layer's embedding of each token and its factor; blocks of one norm and one module, and
    norms of the stream itself, aside."""
    (whole, d), found = described(twin, twin_cache), ran(twin, twin_cache)
    for layer in range(d.n_layers):
        fam, at = whole.of(layer), f"blocks.{layer}."
        if fam.post_norm or fam.cross or fam.stream_scale is None:
            continue
        kinds = ("resid_pre", "attn_out", "mixer_out", "mlp_out", "per_layer_out")
        parts = [found[at + kind] for kind in kinds if kind not in whole.absent(layer)]
        same(sum(parts) * weights[at + fam.stream_scale], found[at + "resid_post"])


@every_twin
def test_what_later_blocks_are_given_beside_the_stream(twin: str, twin_cache: Path) -> None:
    fam, d = described(twin, twin_cache)
    reads = [own.kv_from for own in fam.every]
    embeds = any(own.per_layer for own in fam.every)
    again = [own.reads_embedding for own in fam.layers]
    first = fam.beside("resid_pre", 0)
    assert (first is not None) == (embeds or any(again))  # only embeddings were computed yet
    assert fam.beside("resid_post", d.n_layers - 1) is None
    for layer in range(d.n_layers):
        shared = any(s is not None and s <= layer for s in reads[layer + 1 :])
        found = fam.beside("resid_post", layer)
        later = any(again[layer + 1 :]) or (embeds and layer < d.n_layers - 1)
        assert (found is not None) == (shared or later)


@every_twin
def test_scores_give_the_pattern(twin: str, twin_cache: Path, weights: Weights) -> None:
    (fam, d), found = described(twin, twin_cache), ran(twin, twin_cache)
    for layer in range(d.n_layers):
        if "attn.scores" in fam.absent(layer):
            continue
        scores = found[f"blocks.{layer}.attn.scores"]
        sinks = weights.get(f"blocks.{layer}.attn.sinks")
        if sinks is not None:
            column = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
            pattern = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
        else:
            pattern = scores.softmax(-1)
        same(pattern, found[f"blocks.{layer}.attn.pattern"])


@every_twin
def test_the_weights_reproduce_the_mlp(twin: str, twin_cache: Path, weights: Weights) -> None:
    whole, d = described(twin, twin_cache)
    for layer in range(d.n_layers):
        if whole.of(layer).mlp:
            _reproduces_the_mlp(twin, twin_cache, weights, layer)


def _reproduces_the_mlp(twin: str, twin_cache: Path, weights: Weights, layer: int) -> None:
    fam, found = described(twin, twin_cache)[0].of(layer), ran(twin, twin_cache)
    at = f"blocks.{layer}."
    x = found[at + fam.mlp_reads]
    w = _of_mlp(weights, at, fam)
    if fam.mlp_shifted:
        _reproduces_the_shifted_mlp(weights, at, fam, found)
    elif fam.moe and fam.has_neurons:
        _reproduces_experts_beside_an_mlp(twin, twin_cache, weights, layer)
    elif fam.moe:
        logits = x.flatten(0, 1) @ w["W_router"] + w.get("b_router", 0)
        same(logits, found[at + "mlp.router_logits"])
        out = mixture(x.flatten(0, 1), logits, w, huggingface(twin, twin_cache).config)
        out = out.reshape(x.shape)
        same(out * fam.multiplier("mlp_out"), found[at + _returned_by_mlp(fam)])
    else:
        pre, linear = ("W_gate", "W_in") if fam.gated else ("W_in", None)
        same(x @ w[pre] + w.get(pre.replace("W", "b"), 0), found[at + "mlp.pre"])
        if linear:
            same(x @ w[linear] + w.get("b_in", 0), found[at + "mlp.pre_linear"])
        out = (found[at + "mlp.post"] @ w["W_out"] + w.get("b_out", 0)) * fam.mlp_multiplier
        same(out * fam.multiplier("mlp_out"), found[at + _returned_by_mlp(fam)])


def _reproduces_experts_beside_an_mlp(
    twin: str, twin_cache: Path, weights: Weights, layer: int
) -> None:
    fam, found = described(twin, twin_cache)[0].of(layer), ran(twin, twin_cache)
    at = f"blocks.{layer}."
    w = {k.removeprefix(at): v for k, v in weights.items() if k.startswith(at)}
    w |= _of_mlp(weights, at, fam)
    x, y = found[at + "resid_mid"], found[at + fam.mlp_reads]
    dense = torch.nn.functional.gelu(y @ w["W_gate"], approximate="tanh") * (y @ w["W_in"])
    dense = dense @ w["W_out"]
    same(dense, found[at + "mlp.out"])
    config = huggingface(twin, twin_cache).config
    logits, out = beside_an_mlp(x.flatten(0, 1), dense.flatten(0, 1), w, config)
    same(logits, found[at + "mlp.router_logits"])
    same(out.reshape(x.shape), found[at + "mlp_out"])


def _returned_by_mlp(fam: Family) -> str:
    return "mlp.out" if fam.ln2_post else "mlp_out"


def _reproduces_the_shifted_mlp(weights: Weights, at: str, fam: Family, found: Any) -> None:
    x, w = found[at + fam.mlp_reads], _of_mlp(weights, at, fam)
    before = torch.nn.functional.pad(x, (0, 0, 1, -1))
    mixed = {n: x * w[f"time_mix_{n}"] + before * (1 - w[f"time_mix_{n}"]) for n in _SHIFTED}
    same(mixed["key"] @ w["W_in"], found[at + "mlp.pre"])
    out = (mixed["receptance"] @ w["receptance.weight"].T).sigmoid()
    same(out * (found[at + "mlp.post"] @ w["W_out"]), found[at + "mlp_out"])


_SHIFTED = ("key", "receptance")


def _of_mlp(weights: Weights, at: str, fam: Family) -> Weights:
    """A block's weights of its MLP, without the MLP's name: ours, or HuggingFace's."""
    starts = (f"{at}{fam.mlp}.", f"{at}mlp.")
    return {k.removeprefix(s): v for s in starts for k, v in weights.items() if k.startswith(s)}


def _sinusoids(positions: int, width: int) -> torch.Tensor:
    """Vaswani et al. 2017, sines first, the last of them 10^4 times slower than the first."""
    rates = 1e4 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)
    turns = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    return torch.cat([turns.sin(), turns.cos()], dim=-1)


@every_twin
def test_the_weights_reproduce_embedding_and_unembedding(
    twin: str, twin_cache: Path, weights: Weights
) -> None:
    fam, d = described(twin, twin_cache)
    found = ran(twin, twin_cache)
    tokens, config = found.prompt.tokens, huggingface(twin, twin_cache).config
    if fam.reads:
        _reproduces_what_is_read(twin, twin_cache, weights)
        return
    embedded = weights["embed.W_E"][tokens] * (d.d_model**0.5 if fam.embed_scaled else 1)
    if fam.type_embed:  # of token type 0
        embedded = embedded + weights[f"{fam.type_embed}.weight"][0]
    if fam.embed_ln and fam.pos_embed:  # their norm is that of the sum
        embedded = embedded + found["pos_embed"]
    if fam.embed_ln:
        rule = facts.norm(config, fam)
        embedded = rule(embedded, weights.get("embed_ln.w"), weights.get("embed_ln.b"))
    same(embedded * fam.embed_multiplier, found["embed"])
    if fam.pos_embed:
        table = weights.get("pos_embed.W_pos", _sinusoids(d.n_ctx + fam.pos_offset, d.d_model))
        table = table[fam.pos_offset :]
        assert table.shape[0] == d.n_ctx
        same(table[: tokens.shape[1]][None], found["pos_embed"])
    normed = found["ln_final" if fam.ln_final else f"blocks.{d.n_layers - 1}.resid_post"]
    if fam.head:
        normed = huggingface(twin, twin_cache).model.get_submodule(fam.head)(normed)
    scales = config.model_type == "switch_transformers" and config.tie_word_embeddings
    if scales or getattr(config, "scale_decoder_outputs", False):
        normed = normed * d.d_model**-0.5
    logits = normed @ weights["unembed.W_U"] + weights.get("unembed.b_U", 0)
    logits = logits * (getattr(config, "logit_scale", None) or 1)
    logits = logits / (getattr(config, "logits_scaling", None) or 1)
    logits = logits * (getattr(config, "lm_head_multiplier", None) or 1)
    logits = logits * (getattr(config, "output_multiplier", None) or 1)
    caps = (getattr(config, n, None) for n in ("final_logit_softcapping", "logits_soft_cap"))
    if cap := next(filter(None, caps), None):
        logits = cap * torch.tanh(logits / cap)
    same(logits, found.logits)


def _reproduces_what_is_read(twin: str, twin_cache: Path, weights: Weights) -> None:
    """The first block's input of an image or a wave, and the logits of what the last one gives."""
    (fam, d), found = described(twin, twin_cache), ran(twin, twin_cache)
    parts = [found["embed"], *([found["pos_embed"]] if fam.pos_embed and not fam.embed_ln else [])]
    same(sum(parts), found["blocks.0.resid_pre"])
    if fam.reads == "pixel_values" or fam.pooled:
        x, w = found.prompt.extra[fam.reads], f"{fam.embed}."
        kernel = weights[f"{w}patch_embeddings.projection.weight"]
        bias = weights[f"{w}patch_embeddings.projection.bias"]
        first = [weights[w + n][0] for n in ("cls_token", "distillation_token") if w + n in weights]
        if fam.architecture.startswith("AST"):
            config = huggingface(twin, twin_cache).config
            x, stride = x.transpose(1, 2)[:, None], (config.frequency_stride, config.time_stride)
        else:
            stride = kernel.shape[-2:]
        patches = x.unfold(2, kernel.shape[-2], stride[0]).unfold(3, kernel.shape[-1], stride[1])
        made = torch.einsum("bcfthw,mchw->bftm", patches, kernel).flatten(1, 2) + bias
        made = torch.cat([*(t[None] for t in first), made], dim=1)
        same(made + weights[f"{w}position_embeddings"], found["embed"])
    normed = found["ln_final" if fam.ln_final else f"blocks.{d.n_layers - 1}.resid_post"]
    if fam.unembed is None:
        same(normed, found.logits)
        return
    if fam.architecture.startswith("AST"):
        pooled = normed[:, :2].mean(1, keepdim=True)
        norm = huggingface(twin, twin_cache).model.get_submodule("classifier.layernorm")
        normed = norm(pooled)
    elif fam.pooled:
        normed = normed[:, :1]
    logits = normed @ weights["unembed.W_U"] + weights["unembed.b_U"]
    same(logits.expand_as(found.logits), found.logits)


# --- The twins show mistakes --------------------------------------------------------------------


def test_some_pre_activations_pass_the_limit_that_clamps_experts(twin_cache: Path) -> None:
    fam, _ = described("gpt-oss", twin_cache)
    model = huggingface("gpt-oss", twin_cache)
    weights = canonical(model.parameters(), fam, model.dims)
    x = ran("gpt-oss", twin_cache)[f"blocks.{LAYER}.ln2"].flatten(0, 1)
    at = f"blocks.{LAYER}.mlp.experts.0."
    for letter in ("gate", "in"):
        pre = x @ weights[f"{at}W_{letter}"].tensor + weights[f"{at}b_{letter}"].tensor
        passed = float((pre > model.config.swiglu_limit).double().mean())
        assert 0.0005 < passed < 0.1, letter


@every_twin
def test_routers_choose_clearly_and_by_all_they_have(
    twin: str, twin_cache: Path, weights: Weights
) -> None:
    """No near-tie, which rounding could turn; and a correction bias changes what is chosen."""
    fam, d = described(twin, twin_cache)
    config, found = huggingface(twin, twin_cache).config, ran(twin, twin_cache)
    for layer in range(d.n_layers):
        if not fam.of(layer).moe:
            continue
        start = f"blocks.{layer}.mlp."
        w = _of_mlp(weights, f"blocks.{layer}.", fam.of(layer))
        k, changed = per_token(config), 0
        for logits in found[f"{start}router_logits"]:
            scores, choice = scored(logits, w, config)
            last, next_best = choice.sort(descending=True).values[k - 1 : k + 1]
            assert float((last - next_best) / last.abs()) > 1e-4, layer
            changed += set(choice.topk(k).indices.tolist()) != set(scores.topk(k).indices.tolist())
        assert correction(w) is None or changed, layer


@every_twin
def test_no_parameter_is_neutral(twin: str, twin_cache: Path) -> None:
    model = huggingface(twin, twin_cache)
    sinusoids = model.config.model_type in ("marian", "pegasus")
    for name, parameter in model.parameters().items():
        if any(gain == 0 and name.endswith(end) for end, gain in TWINS[twin].gains.items()):
            continue  # a constant
        if sinusoids and name.endswith("embed_positions.weight"):
            continue
        scale = parameter.ndim == 1 and name.endswith(".weight")
        neutral = 1.0 if scale and not model.family.norm_offset else 0.0
        away = (parameter - neutral).abs()
        assert float(away.square().mean().sqrt()) > 0.074, name  # a normal median of 0.05
        assert bool((away > 0).all()), name
        assert parameter.unique().numel() > 0.9 * parameter.numel(), name


_UNROTATED_TOWERS = ("model.vision_tower.encoder.", "model.vision_model.encoder.")


@every_twin
def test_every_parameter_moves_the_logits(twin: str, twin_cache: Path) -> None:
    """Set to what a checkpoint without it would have, each changes the logits by 1 % or more."""
    model = huggingface(twin, twin_cache)
    found = ran(twin, twin_cache, MEDIA if reads(twin, twin_cache, MEDIA) else "sixteen")
    prompt, truth = found.prompt, found.logits
    silent = _without_effect(model)
    for name, parameter in model.model.named_parameters():
        scale = parameter.ndim == 1 and name.endswith(".weight") and not model.family.norm_offset
        kept = parameter.detach().clone()
        with torch.no_grad():
            direction = name.endswith(".original1")  # of a normed weight: of any length but 0
            parameter.fill_(1.0 if scale or direction else 0.0)
            moved = model.run(prompt, lambda *_: None)
            parameter.copy_(kept)
        change = float((moved - truth).abs().max() / truth.abs().max())
        if name in silent:
            assert change < 1e-9, name
        else:
            assert change > 0.01, name


def _without_effect(model: Any) -> set[str]:
    """Biases of keys that are not rotated: a query adds the same to all its scores.

    What stands for masked frames in training. And what of a tower is not read: LLaVA takes the last
    layer but one; Emu3's makes tokens.
    """
    found = {
        name
        for name, _ in model.model.named_parameters()
        if name.startswith(_UNROTATED_TOWERS) and name.endswith(".k_proj.bias")
    }
    config = model.model.config
    kind, vision = config.model_type, getattr(config, "vision_config", None)
    unread: tuple[str, ...] = ("model.vqmodel.",) if kind == "emu3" else ()
    if vision is not None and kind in ("llava", "llava_next", "llava_onevision"):
        kept = vision.num_hidden_layers + config.vision_feature_layer + 1
        layers = range(kept, vision.num_hidden_layers)
        unread += (*(f"model.vision_tower.encoder.layers.{i}." for i in layers),)
        unread += ("model.vision_tower.post_layernorm.",)
    if unread:
        found |= {n for n, _ in model.model.named_parameters() if n.startswith(unread)}
    found |= {n for n, _ in model.model.named_parameters() if n.endswith("masked_spec_embed")}
    if model.family.unembed is None:  # what is made of the hidden states besides
        found |= {n for n, _ in model.model.named_parameters() if n.startswith("pooler.")}
    for layer in range(model.dims.n_layers):
        own = model.family.of(layer)
        if own.k and not own.rotary and own.qk_norm is None:
            found.add(f"{own.at(own.k, layer)}.bias")
        if own.cross_k:
            found.add(f"{own.at(own.cross_k, layer)}.bias")
        if own.windowed and own.k and not own.cross:
            found.add(f"{own.at(own.k, layer)}_global.bias")
    return found


@every_twin
def test_attention_is_not_uniform(twin: str, twin_cache: Path) -> None:
    fam, d = described(twin, twin_cache)
    found = ran(twin, twin_cache)
    for layer in range(d.n_layers):
        if "attn.pattern" in fam.absent(layer):
            continue
        pattern = found[f"blocks.{layer}.attn.pattern"]
        visible = (pattern > 0).sum(-1)
        assert int(visible[..., -1].max()) > WINDOW / 2
        peaked = pattern.amax(-1)[..., 4:] * visible[..., 4:]  # 1 if uniform
        assert float(peaked.mean()) > 2, layer


@every_twin
def test_windows_are_where_the_config_says(twin: str, twin_cache: Path) -> None:
    """Attention reaches exactly as far as ``dims`` promises, on a prompt past the window."""
    fam, d = described(twin, twin_cache)
    found = ran(twin, twin_cache, "long" if reads(twin, twin_cache, "long") else "sixteen")
    length = found.prompt.tokens.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    for layer, window in enumerate(d.windows):
        if "attn.pattern" in fam.absent(layer):
            continue
        seen = (found[f"blocks.{layer}.attn.pattern"] != 0).any(0).any(0)
        reach = length if window is None else window
        allowed = (distance >= 0) & (distance < reach)
        if not fam.of(layer).causal:
            allowed |= (distance < 0) & (-distance < reach)
        assert not bool((seen & ~allowed).any()), layer
        if fam.of(layer).indexed:
            topk = huggingface(twin, twin_cache).config.index_topk
            count = (found[f"blocks.{layer}.attn.pattern"] > 0).sum(-1)
            assert bool((count == torch.arange(1, length + 1).clamp(max=topk)).all()), layer
            continue
        near = (distance >= (0 if fam.of(layer).causal else -8)) & (distance < min(reach, 8))
        if chunk := d.chunk(layer):
            of = torch.arange(length) // chunk
            other = of[:, None] != of[None]
            assert not bool((seen & other).any()), layer
            near &= ~other
        assert bool(seen[near].all()), layer
        if window is not None and window < length:
            edge = distance == window - 1
            assert bool(seen[edge].any()), layer


@every_twin
def test_the_tokenizer_reads_and_writes_text(twin: str, twin_cache: Path) -> None:
    """transformers chooses the class by the type of model: each must read the twin's alphabet."""
    if described(twin, twin_cache)[0].reads or not TWINS[twin].reads_text:
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint(twin, twin_cache).path)
    text = " two  words, 3 + 4\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
