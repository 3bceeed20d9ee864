"""The script's constants: what it builds, and where each site is on either side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.explain.script.cases import INSIDE
from conformance.explain.script.literals import literal, rows, table, text
from conformance.sites import BLOCK_KINDS

if TYPE_CHECKING:
    from conformance.explain.script.cases import Case, Port, Source
    from conformance.families import Dims, Family


def constants_part(
    source: Source, port: Port, case: Case, fam: Family, d: Dims, inside: bool
) -> str:
    lines = [f"ARCHITECTURE = {text(source.architecture)}"]
    if source.checkpoint is None:
        lines += [
            f"MODEL_TYPE = {text(source.model_type)}",
            f"CONFIG = {literal(source.config)}",
        ]
        if source.gains:
            lines.append(f"GAINS = {literal(source.gains)}  # these are drawn larger")
    else:
        lines.append(f"CHECKPOINT = {text(source.checkpoint)}")
        if source.revision:
            lines.append(f"REVISION = {text(source.revision)}")
        if source.keep is not None:
            lines += [
                f"KEEP = {list(source.keep)}  # the layers that are needed",
                f"LAYER_NAME = {text(fam.block.format(l=''))}",
                f"CHANGES = {literal(source.changes)}",
            ]
    lines.append(f"TOKENS = torch.tensor({table(case.tokens)})")
    if case.mask is not None:
        lines.append(f"MASK = torch.tensor({table(case.mask)})")
    if port.kind == "hooked":
        lines.append(f"OFFICIAL_NAME = {text(port.official or '')}")
        lines.append(f"SIZES = {literal(port.sizes)}")
    if port.flags is not None:
        lines.append(f"PROCESSING = {literal(port.flags)}")
    layer, whole = site_table(port, fam, inside)
    lines += [
        f"LAYERS = {case.layers}",
        f"ALLOWED = {case.allowed:.0e}",
        "# TransformerLens's name of a place, its hook there, HuggingFace's module, and whether",
        "# the place is that module's input, its output, or a part of its output.",
        f"SITES = {rows(whole[:2])}",
        f"LAYER_SITES = {rows(layer)}",
        f"LAST_SITES = {rows(whole[2:])}",
        f"BLOCK = {text(fam.block)}",
    ]
    if factors(fam):
        lines.append(f"FACTORS = {literal(factors(fam))}  # applied outside the modules")
    if inside:
        lines.append(f"ATTENTION = {text(fam.attn or '')}")
        lines.append(f"HEADS, KV_HEADS = {d.n_heads}, {d.n_kv_heads}")
    elif fam.qkv:
        lines.append(f"HEADS, KV_HEADS = {d.n_heads}, {d.n_kv_heads}")
    if fam.qkv:
        lines.append(f"D_HEAD = {d.d_head}")
    return "\n".join(lines)


def factors(fam: Family) -> dict[str, float]:
    """What a site is multiplied by after its module: see ``conformance/families``."""
    found = {"embed": fam.embed_multiplier}
    found |= dict.fromkeys(("attn_out", "mlp_out"), fam.residual_multiplier)
    return {kind: factor for kind, factor in found.items() if factor != 1.0}


def site_table(
    port: Port, fam: Family, inside: bool
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """(site, hook, HuggingFace module, side) of every place in a layer, and outside layers.

    The first two of the second are the embedding's, with empty names where there is none.
    """
    rows: list[tuple[str, ...]] = []
    places = _places(fam)
    for kind in (k.name for k in BLOCK_KINDS):
        hook = port.hooks.get(kind)
        if hook is None or (kind in INSIDE and not inside) or kind not in places:
            continue
        if kind == "attn.scores" and fam.sinks:
            continue  # the softmax is given more than them: the sinks, and the largest taken off
        path, side = places[kind]
        if kind in port.transposed:
            side += " transposed"
        rows.append((kind, hook, path, side))
    outside: list[tuple[str, ...]] = [
        ("embed", port.hooks.get("embed", ""), fam.embed_ln or fam.embed, "output"),
        ("pos_embed", port.hooks.get("pos_embed", ""), fam.pos_embed or "", "output"),
        ("ln_final", port.hooks.get("ln_final", ""), fam.ln_final or "", "output"),
    ]
    shown = [r if r[1] and r[2] else ("", "", "", "") for r in outside]
    return rows, shown


def _places(fam: Family) -> dict[str, tuple[str, str]]:
    """Site kind -> (module relative to the block, side)."""
    found: dict[str, tuple[str, str]] = {
        "resid_pre": ("", "input"),
        "resid_post": ("", "output"),
        "attn.z": (fam.o or "", "input"),
        "mixer_out": (fam.mixer or "", "output"),
        **dict.fromkeys(INSIDE, ("", "attention")),
    }
    for name in ("ln_pre", "ln1", "ln2"):
        path = getattr(fam, name)
        if path:
            found[name] = (path, "output")
    for letter in "qkv":
        path = getattr(fam, letter)
        found[f"attn.{letter}"] = (fam.qkv, letter) if fam.qkv else (path or "", "output")
    if fam.q_norm and fam.k_norm:
        found["attn.q_normed"] = (fam.q_norm, "output")
        found["attn.k_normed"] = (fam.k_norm, "output")
    if fam.ln1_post:
        found |= {"attn.out": (fam.o or "", "output"), "attn_out": (fam.ln1_post, "output")}
    else:
        found["attn_out"] = (fam.o or "", "output")
    if not fam.parallel:
        found["resid_mid"] = (fam.ln2 or fam.mlp or "", "input")
    out = fam.mlp_contribution or fam.mlp or ""
    if fam.ln2_post:
        found |= {"mlp.out": (out, "output"), "mlp_out": (fam.ln2_post, "output")}
    else:
        found["mlp_out"] = (out, "output")
    if fam.router:
        found["mlp.router_logits"] = (fam.router, "output")
    elif fam.gate_up:
        found["mlp.pre"], found["mlp.pre_linear"] = (fam.gate_up, "gate"), (fam.gate_up, "up")
    elif fam.gate and fam.up:
        found["mlp.pre"], found["mlp.pre_linear"] = (fam.gate, "output"), (fam.up, "output")
    elif fam.up:
        found["mlp.pre"] = (fam.up, "output")
    if fam.down and not fam.router:
        found["mlp.post"] = (fam.down, "input")
    return found
