"""The hooks that TransformerLens publishes, with the shape that each promises, and their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.sites import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conformance.checks.base import Context
    from conformance.prompts import Prompt

#: Kinds of one layer: what must fire before what, as the computation goes. Where a port shows
#: only the ends of a chain, its ends are in order too.
BEFORE: Mapping[str, tuple[str, ...]] = {
    "resid_pre": ("ln1", "attn.q", "attn.k", "attn.v", "mlp.pre"),
    "ln1": ("attn.q", "attn.k", "attn.v"),
    "attn.q": ("attn.q_normed", "attn.rot_q", "attn.scores", "attn.pattern"),
    "attn.k": ("attn.k_normed", "attn.rot_k", "attn.scores", "attn.pattern"),
    "attn.q_normed": ("attn.rot_q", "attn.scores", "attn.pattern"),
    "attn.k_normed": ("attn.rot_k", "attn.scores", "attn.pattern"),
    "attn.rot_q": ("attn.scores", "attn.pattern"),
    "attn.rot_k": ("attn.scores", "attn.pattern"),
    "attn.scores": ("attn.pattern", "attn.z"),
    "attn.pattern": ("attn.z",),
    "attn.v": ("attn.v_normed", "attn.z"),
    "attn.v_normed": ("attn.z",),
    "attn.z": ("attn.out", "attn_out"),
    "attn.out": ("attn_out",),
    "attn_out": ("resid_mid", "resid_post"),
    "resid_mid": ("ln2", "mlp.pre", "mlp.router_logits", "mlp.post"),
    "ln2": ("mlp.pre", "mlp.pre_linear", "mlp.router_logits", "mlp_out"),
    "mlp.pre": ("mlp.post",),
    "mlp.pre_linear": ("mlp.post",),
    "mlp.post": ("mlp.out", "mlp_out"),
    "mlp.router_logits": ("mlp.out", "mlp_out"),
    "mlp.out": ("mlp_out",),
    "mlp_out": ("per_layer_out", "resid_post"),
    "per_layer_out": ("resid_post",),
}

#: The same where norms of queries and keys read what is rotated already.
BEFORE_NORMS_LAST: Mapping[str, tuple[str, ...]] = {
    **BEFORE,
    **{
        kind: after
        for x in "qk"
        for kind, after in (
            (f"attn.{x}_normed", ("attn.scores", "attn.pattern")),
            (f"attn.rot_{x}", (f"attn.{x}_normed", "attn.scores", "attn.pattern")),
        )
    },
}

#: The same where norms of the stream come after attention and the MLP.
BEFORE_POST_NORM: Mapping[str, tuple[str, ...]] = {
    **{kind: tuple(k for k in after if k not in ("ln1", "ln2")) for kind, after in BEFORE.items()},
    "attn_out": ("ln1", "resid_mid", "resid_post"),
    "ln1": ("mlp.pre", "mlp.pre_linear", "mlp_out"),
    "mlp_out": ("ln2", "resid_post"),
    "ln2": (),
}

#: The library's switches -> the hooks that fire only under them. Axes as of sites; ``heads`` is
#: one entry per query head or per key/value head, as the port groups them.
SWITCHES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "use_attn_result": {"attn.hook_result": ("batch", "pos", "head", "d_model")},
    "use_split_qkv_input": {
        "hook_q_input": ("batch", "pos", "head", "d_model"),
        "hook_k_input": ("batch", "pos", "heads", "d_model"),
        "hook_v_input": ("batch", "pos", "heads", "d_model"),
    },
    "use_attn_in": {"hook_attn_in": ("batch", "pos", "head", "d_model")},
    "use_hook_mlp_in": {"hook_mlp_in": ("batch", "pos", "d_model")},
}


@dataclass(frozen=True)
class Published:
    """One hook.

    Attributes:
        site: what it shows, in our words; its own name where we have none.
        axes: its dimensions; None where the library promises no shape.
    """

    site: str
    axes: tuple[str, ...] | None


def published(context: Context) -> dict[str, Published]:
    """Hook name -> what it promises, for every hook the library has for this architecture."""
    subject, fam = context.subject, context.subject.family
    by_module, points = subject.module_sites(), subject.model.hook_dict
    found: dict[str, Published] = {}
    for site, name in subject.expected_hooks()[0].items():
        if site not in by_module:
            own = subject.layout(parse(site).kind) is not None
            # Several names may show one hook: the first site is as good as any.
            found.setdefault(name, Published(site, None if own else parse(site).axes))
    norms = ("ln1", "ln2", "ln1_post", "ln2_post")
    layers = range(subject.dims.n_layers)
    parts = [f"blocks.{i}.{n}" for i in layers for n in norms if getattr(fam.of(i), n)]
    for part in (*parts, "ln_final"):
        module = subject.components().get(part)
        if module is None:
            continue
        for hook, last in (("hook_normalized", "d_model"), ("hook_scale", "one")):
            # A norm after its branch may go by the name of one before it.
            name = getattr(getattr(module, hook, None), "name", None) or f"{part}.{hook}"
            found[name] = Published(f"{part}.{hook}", ("batch", "pos", last))
    for name, last in (("unembed.hook_in", "d_model"), ("unembed.hook_out", "d_vocab")):
        if name in points:
            found.setdefault(name, Published(name, ("batch", "pos", last)))
    return found


def shape(
    context: Context, prompt: Prompt, hook: Published, *, grouped: bool = False
) -> tuple[int, ...]:
    """What ``hook.axes`` come to on a prompt."""
    batch, pos = prompt.tokens.shape
    site = parse(hook.site) if is_site(hook.site) else None
    d = context.reference.dims
    d = d if site is None or site.layer is None else d.of(site.layer)
    sizes = {"batch": batch, "pos": pos, "query": pos, "key": pos, "token": batch * pos, "one": 1}
    sizes |= {"head": d.n_heads, "kv_head": d.n_kv_heads, "d_head": d.d_head}
    sizes["d_head_v"] = d.d_head_v
    sizes |= {"d_model": d.d_model, "d_vocab": d.d_vocab}
    sizes |= {"heads": d.n_kv_heads if grouped else d.n_heads}
    assert hook.axes is not None
    if missing := [a for a in hook.axes if a not in sizes]:
        whole = context.reference.truth("sixteen", hook.site).shape
        sizes |= {a: whole[hook.axes.index(a)] for a in missing}
    return tuple(sizes[a] for a in hook.axes)


def out_of_order(
    fired: Sequence[str],
    same: Mapping[str, int],
    before: Mapping[str, tuple[str, ...]] = BEFORE,
) -> Iterator[tuple[str, str]]:
    """Pairs (earlier, later) of sites that fired the other way round.

    Args:
        fired: sites, as they fired.
        same: site -> which hook point shows it; two names of one point have no order.
        before: kinds of one layer -> what must fire after each.
    """
    place = {site: index for index, site in enumerate(fired)}
    layers = sorted({parse(s).layer or 0 for s in fired if s.startswith("blocks.")})
    pairs = [
        (f"blocks.{layer}.{first}", f"blocks.{layer}.{then}")
        for layer in layers
        for first, after in before.items()
        for then in after
    ]
    for layer in layers:
        here = f"blocks.{layer}.resid_pre"
        pairs += [("embed", here), ("pos_embed", here), (here, f"blocks.{layer}.resid_post")]
        pairs += [(f"blocks.{layer}.resid_post", f"blocks.{layer + 1}.resid_pre")]
        pairs += [(f"blocks.{layer}.resid_post", "ln_final")]
    for first, then in pairs:
        both = first in place and then in place and same.get(first, first) != same.get(then, then)
        if both and place[first] > place[then]:
            yield first, then


def is_site(name: str) -> bool:
    """Whether a name is one of our sites."""
    try:
        parse(name)
    except ValueError:
        return False
    return True
