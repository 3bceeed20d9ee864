"""How the script reads HuggingFace's side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.explain.script.literals import indented
from conformance.explain.script.tables import factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.explain.script.cases import Case
    from conformance.families import Family


_ATTENTION = '''
class Attention(TorchFunctionMode):
    """Reads what HuggingFace's attention computes between its projections."""

    PRODUCTS = (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__)
    SOFTMAXES = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax)

    def __init__(self, seen):
        super().__init__()
        self.seen, self.layer, self.product = seen, None, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.layer is None:
            return result
        if func in self.PRODUCTS and args[0].ndim == 4 and args[1].ndim == 4:
            self.product = args[:2]
        elif func in self.SOFTMAXES and result.ndim == 4:
            at = f"blocks.{self.layer}.attn."
            scores = args[0] if args else kwargs["input"]
            if self.product is not None:
                q, k = self.product[0], self.product[1].transpose(-1, -2)
                if k.shape[1] == HEADS != KV_HEADS:
                    k = k[:, :: HEADS // KV_HEADS]
                self.seen[at + "rot_q"] = q.transpose(1, 2)
                self.seen[at + "rot_k"] = k.transpose(1, 2)
            self.seen[at + "scores"] = scores
            self.seen[at + "pattern"] = result[..., : scores.shape[-2]]
            self.layer = None
        return result
'''


_SPLITS: Mapping[str, str] = {
    "concat": '''
def part_of(fused, letter):
    """Queries, keys or values out of a fused projection: all queries, all keys, all values."""
    sizes = [HEADS * D_HEAD, KV_HEADS * D_HEAD, KV_HEADS * D_HEAD]
    return fused.split(sizes, dim=-1)["qkv".index(letter)]
''',
    "per_head": '''
def part_of(fused, letter):
    """Queries, keys or values out of a fused projection that keeps each head's together."""
    return fused.unflatten(-1, (HEADS, 3, D_HEAD))[..., "qkv".index(letter), :]
''',
    "grouped": '''
def part_of(fused, letter):
    """Queries, keys or values out of a fused projection: a group's queries, its key, its value."""
    groups = fused.unflatten(-1, (KV_HEADS, HEADS // KV_HEADS + 2, D_HEAD))
    if letter == "q":
        return groups[..., :-2, :].flatten(-3, -2)
    return groups[..., -2 if letter == "k" else -1, :]
''',
}


_WATCH_REFERENCE = '''
def run_reference(folder, dtype):
    """HuggingFace's values at every place, and its logits."""
    model = getattr(transformers, ARCHITECTURE).from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()
    seen = {}

    def watch(site, path, side):
        module = model.get_submodule(path)

        def before(_, args, kwargs):
            seen[site] = (args[0] if args else kwargs["hidden_states"]).clone()

        def after(_, __, output):
            value = output if isinstance(output, torch.Tensor) else output[0]
@@PARTS@@
            seen[site] = value.clone()

        if side == "input":
            module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            module.register_forward_hook(after)

    for site, _, path, side in (*SITES, *LAST_SITES):
        if site:
            watch(site, path, side)
@@ATTENTION@@
    for layer in range(LAYERS):
        for kind, _, path, side in LAYER_SITES:
            if side != "attention":
                full = f"{BLOCK}.{path}" if path else BLOCK
                watch(f"blocks.{layer}.{kind}", full.format(l=layer), side)
@@LAYER@@
@@OPTIONS@@
    with @@ENTER@@torch.no_grad():
        seen["logits"] = model(@@ARGUMENTS@@).logits
    return seen
'''


def reference_part(case: Case, fam: Family, inside: bool) -> str:
    text = _ATTENTION + "\n\n" if inside else ""
    parts = []
    if fam.qkv:
        text += _SPLITS[fam.qkv_layout] + "\n\n"
        parts += ['if side in ("q", "k", "v"):', "    value = part_of(value, side)"]
    if fam.gate_up:
        parts += [
            'if side in ("gate", "up"):',
            '    value = value.chunk(2, dim=-1)[side == "up"]',
        ]
    if factors(fam):
        parts.append('value = value * FACTORS.get(site.rpartition(".")[2], 1.0)')
    layer, options, arguments = [], [], "TOKENS, use_cache=False"
    if inside:
        layer = [
            'module = model.get_submodule(f"{BLOCK}.{ATTENTION}".format(l=layer))',
            "module.register_forward_pre_hook(",
            '    lambda *_, layer=layer: setattr(attention, "layer", layer), with_kwargs=True',
            ")",
        ]
    if case.mask is not None:
        arguments += ", attention_mask=MASK, **options"
        options = [
            "options = {}",
            'if "position_ids" in inspect.signature(model.forward).parameters:',
            '    options["position_ids"] = (MASK.cumsum(-1) - 1).clamp_min(0)',
        ]
    filled = {
        "PARTS": indented(parts, 12),
        "ATTENTION": "    attention = Attention(seen)\n" if inside else "",
        "LAYER": indented(layer, 8),
        "OPTIONS": indented(options, 4),
    }
    watch = _WATCH_REFERENCE
    for name, lines in filled.items():
        watch = watch.replace(f"@@{name}@@\n", lines)
    watch = watch.replace("@@ENTER@@", "attention, " if inside else "")
    return text + watch.replace("@@ARGUMENTS@@", arguments)
