"""What was published of a model of TransformerLens's own format: ``config.json`` and a state dict.

The three layouts are those of the repositories that TransformerLens has official names of:

- ``neel``: the parameters of a HookedTransformer, by its names and in its shapes
  (``NeelNanda/*``, ``ArthurConmy/redwood_attn_2l``);
- ``neel-solu-old``: the same, but norms are called ``norm``, and models of few layers hold
  matrices transposed: positions up to 8 layers, everything up to 6 (``NeelNanda/SoLU_*_old``);
- ``mingpt``: minGPT's names and shapes (``Baidicoot/Othello-GPT-Transformer-Lens``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import einops

from conformance.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from conformance.native.config import NativeConfig

CONFIG, WEIGHTS = "config.json", "model_final.pth"
#: Buffers that a HookedTransformer's state dict holds beside its parameters.
_BUFFERS = (".mask", ".IGNORE")
#: Up to so many layers, old models hold their positions, and all matrices, transposed.
_OLD_POSITIONS, _OLD_MATRICES = 8, 6


@dataclass(frozen=True, slots=True)
class _Form:
    """How a weight was published: its name, and its axes here and there, as einops writes them."""

    name: str
    ours: str
    theirs: str


#: Our name -> the published one and the axes of both, for a HookedTransformer's parameters.
_GLOBAL = {
    "tok_embed.weight": _Form("embed.W_E", "v m", "v m"),
    "pos.weight": _Form("pos_embed.W_pos", "n m", "n m"),
    "ln_out.weight": _Form("ln_final.w", "m", "m"),
    "ln_out.bias": _Form("ln_final.b", "m", "m"),
    "head.weight": _Form("unembed.W_U", "v m", "m v"),
    "head.bias": _Form("unembed.b_U", "v", "v"),
}
_BLOCK = {
    **{f"{n}.weight": _Form(f"{n}.w", "m", "m") for n in ("ln1", "ln2", "mlp.ln")},
    **{f"{n}.bias": _Form(f"{n}.b", "m", "m") for n in ("ln1", "ln2", "mlp.ln")},
    **{f"attn.{n}.weight": _Form(f"attn.W_{n.upper()}", "(h d) m", "h m d") for n in "qkv"},
    **{f"attn.{n}.bias": _Form(f"attn.b_{n.upper()}", "(h d)", "h d") for n in "qkv"},
    "attn.o.weight": _Form("attn.W_O", "m (h d)", "h d m"),
    "attn.o.bias": _Form("attn.b_O", "m", "m"),
    **{f"mlp.fc_{n}.weight": _Form(f"mlp.W_{n}", "o i", "i o") for n in ("in", "out")},
    **{f"mlp.fc_{n}.bias": _Form(f"mlp.b_{n}", "o", "o") for n in ("in", "out")},
}
_MINGPT = {
    "tok_embed": "tok_emb",
    "ln_out": "ln_f",
    **{"attn.q": "attn.query", "attn.k": "attn.key", "attn.v": "attn.value", "attn.o": "attn.proj"},
    **{"mlp.fc_in": "mlp.0", "mlp.fc_out": "mlp.2"},
}


def _form(name: str, config: NativeConfig) -> _Form:
    """How the weight that we call ``name`` was published."""
    inside = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    at, part = (f"blocks.{inside[1]}.", inside[2]) if inside else ("", name)
    if config.layout == "mingpt":
        if part == "pos.weight":
            return _Form("pos_emb", "n m", "1 n m")
        module, what = part.rsplit(".", 1)
        return _Form(f"{at}{_MINGPT.get(module, module)}.{what}", "...", "...")
    form = _BLOCK[part] if inside else _GLOBAL[part]
    if config.layout == "neel":
        return _Form(at + form.name, form.ours, form.theirs)
    turned = _OLD_POSITIONS if form.name.endswith("W_pos") else _OLD_MATRICES
    theirs = form.theirs.split()
    if ".W_" in form.name and config.n_layers <= turned:
        theirs[-2:] = reversed(theirs[-2:])
    old = form.name.replace("ln_final", "norm").replace("ln", "norm")
    return _Form(at + old, form.ours, " ".join(theirs))


def settings(config: NativeConfig) -> dict[str, Any]:
    """What ``config.json`` says of a model, in the words that TransformerLens reads."""
    names = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "n_ctx", "act_fn", "attn_only")
    return {
        **{name: getattr(config, name) for name in names},
        "d_vocab": config.vocab_size,
        "normalization_type": config.normalization,
        "architecture": config.layout,
        "shortformer_pos": config.positions == "shortformer",
    }


def write(checkpoint: Path, config: NativeConfig, target: Path) -> None:
    """Write what was published of a checkpoint.

    Args:
        checkpoint: a directory that ``save_pretrained`` wrote of our class.
        target: a directory; gets ``config.json`` and ``model_final.pth``.
    """
    import torch
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "model.safetensors")
    (target / CONFIG).write_text(json.dumps(settings(config), indent=1), encoding="utf-8")
    torch.save(laid_out(weights, config), target / WEIGHTS)


def laid_out(weights: Mapping[str, torch.Tensor], config: NativeConfig) -> dict[str, torch.Tensor]:
    """A checkpoint's weights by the names and in the shapes that were published.

    Args:
        weights: by the names of :class:`conformance.native.model.TransformerLensNative`.
    """
    found = {}
    for name, tensor in weights.items():
        form = _form(name, config)
        found[form.name] = _rearranged(tensor, form.ours, form.theirs, config)
    return found


def _rearranged(tensor: torch.Tensor, axes: str, to: str, config: NativeConfig) -> torch.Tensor:
    heads = {"h": config.n_heads} if "h" in axes else {}
    moved: torch.Tensor = einops.rearrange(tensor, f"{axes} -> {to}", **heads)
    return moved.contiguous()


def is_published(directory: Path) -> bool:
    """Whether a directory holds a model of TransformerLens's own format, as it was published."""
    return _final(directory) is not None and "act_fn" in _stated(directory)


def _final(directory: Path) -> Path | None:
    return next(iter(sorted(directory.glob("*final.pth"))), None)


def _stated(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory / CONFIG} cannot be read: {error}", "fetch the repository again"
        ) from error
    return found if isinstance(found, dict) else {}


def read(directory: Path, repository: str, target: Path) -> None:
    """Make what was published a checkpoint of our class.

    Args:
        directory: with ``config.json`` and a state dict called ``...final.pth``.
        repository: its name, whose end tells old models.
        target: gets what ``save_pretrained`` writes.

    Raises:
        CheckpointError: a setting or a weight is missing, or is none that we know.
    """
    import torch

    from conformance.native.config import NativeConfig
    from conformance.native.model import TransformerLensNative

    file = _final(directory)
    if file is None:
        raise CheckpointError(f"{directory}: no file *final.pth", "fetch the repository again")
    published = torch.load(file, map_location="cpu", weights_only=True)
    published = {n: t.float() for n, t in published.items() if not n.endswith(_BUFFERS)}
    try:
        config = NativeConfig(**_arguments(_stated(directory), repository))
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{directory / CONFIG}: {error}", "is it a model of TransformerLens's own format?"
        ) from error
    config.unembed_bias = _form("head.bias", config).name in published
    with torch.device("meta"):
        model = TransformerLensNative(config)
    forms = {name: _form(name, config) for name in model.state_dict()}
    names = {form.name for form in forms.values()}
    if names != set(published):
        missing, more = sorted(names - set(published)), sorted(set(published) - names)
        raise CheckpointError(
            f"{file}: missing: {', '.join(missing)}; unknown: {', '.join(more)}",
            "its config.json describes another model",
        )
    weights = {
        name: _rearranged(published[form.name], form.theirs, form.ours, config)
        for name, form in forms.items()
    }
    model.load_state_dict(weights, assign=True)
    config.architectures = [type(model).__name__]
    model.save_pretrained(target)


def _arguments(stated: Mapping[str, Any], repository: str) -> dict[str, Any]:
    """The arguments of our config, as TransformerLens reads a published one."""
    names = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "n_ctx", "act_fn", "attn_only")
    old = "neel-solu-old" if "_old" in repository else "neel"
    return {
        **{name: stated[name] for name in names},
        "vocab_size": stated["d_vocab"],
        "normalization": stated.get("normalization", stated.get("normalization_type")),
        "layout": stated.get("architecture", old),
        "positions": "shortformer" if stated.get("shortformer_pos") else "standard",
    }
