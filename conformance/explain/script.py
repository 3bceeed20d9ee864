"""Writes a standalone script that shows a divergence: for a bug report, with nothing of ours.

The script imports torch, transformers and transformer_lens (and a user's own loader). It makes or
loads a checkpoint, runs both sides on a few tokens, compares site after site and exits with 1
where they differ. How it reads HuggingFace's side comes from the same descriptions in
``families.py`` that the harness uses.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from conformance.sites import BLOCK_KINDS, parse

if TYPE_CHECKING:
    from conformance.families import Dims, Family

#: Sites inside HuggingFace's attention function, which no module shows.
INSIDE = ("attn.rot_q", "attn.rot_k", "attn.scores", "attn.pattern")


@dataclass(frozen=True)
class Source:
    """Where the script's checkpoint comes from.

    Attributes:
        architecture, model_type: HuggingFace's names.
        config: arguments of the config class, for a checkpoint made in the script.
        seed, gains: how its weights are drawn (see ``checkpoints/twins.py``).
        checkpoint: hub id or directory to load instead; None to make one.
        keep: which layers of it to keep; None for all.
        changes: config entries to set where layers are left out.
    """

    architecture: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    gains: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    revision: str | None = None
    keep: tuple[int, ...] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """How the script loads the port.

    Attributes:
        kind: ``bridge``, ``hooked`` or ``declared``.
        hooks: site kind (``{l}`` for the layer) -> hook name, or ``module:`` and a path.
        transposed: kinds that the hook shows as [batch, head, pos, d_head].
        loader: ``package.module:function`` of a declared subject.
        official: the name under which HookedTransformer loads it.
        sizes: what to set in HookedTransformer's configuration.
        flags: weight-processing flags to switch on; None for no processing.
    """

    kind: Literal["bridge", "hooked", "declared"]
    hooks: Mapping[str, str]
    transposed: frozenset[str] = frozenset()
    loader: str | None = None
    official: str | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, bool] | None = None


@dataclass(frozen=True)
class Case:
    """What is to be shown.

    Attributes:
        title: first line of the script: what differs.
        site: the site at which it was seen; the script reads inside attention only if it is there.
        tokens, mask: the prompt.
        layers: how many layers the checkpoint has.
        exact: compare in promoted float64 rather than in float32.
        dtype: for a loss of precision, the dtype in which both sides are compared with float64.
        allowed: the relative difference that counts as none.
        crashes: the port is expected to raise.
    """

    title: str
    site: str
    tokens: tuple[tuple[int, ...], ...]
    mask: tuple[tuple[int, ...], ...] | None
    layers: int
    exact: bool
    allowed: float
    dtype: str | None = None
    crashes: bool = False


def write(source: Source, port: Port, case: Case, fam: Family, d: Dims) -> str:
    """The script's text."""
    inside = parse(case.site).kind in INSIDE
    exact = case.exact or case.dtype is not None
    parts = [
        _constants(source, port, case, fam, d, inside),
        _float64() if exact else "",
        _build(source),
        _reference(case, fam, inside),
        _port(port, case),
        _difference(),
        _main(case, port, exact),
    ]
    body = "\n\n\n".join(part.strip("\n") for part in parts if part)
    head = f'"""{case.title}\n\nExit status: 1 the difference is there, 0 it is not.\n"""'
    return f"{head}\n\n{_imports(port, body)}\n\n{body}\n"


def _imports(port: Port, body: str) -> str:
    """What the body uses."""
    standard = {
        "import contextlib": "contextlib.",
        "import inspect": "inspect.",
        "import json": "json.",
        "import tempfile": "tempfile.",
        "from importlib.metadata import version": "version(",
        "from pathlib import Path": "Path(",
    }
    lines = ["from __future__ import annotations", ""]
    lines += [line for line, use in standard.items() if use in body]
    lines += ["", "import torch", "import transformers"]
    if "TorchFunctionMode" in body:
        lines.append("from torch.overrides import TorchFunctionMode")
    if port.kind == "bridge":
        lines.append("from transformer_lens.model_bridge import TransformerBridge")
    elif port.kind == "hooked":
        lines.append("from transformer_lens import HookedTransformer, loading_from_pretrained")
    else:
        assert port.loader is not None
        module, _, name = port.loader.partition(":")
        lines += ["", f"from {module} import {name} as load_subject"]
    return "\n".join(lines)


def _constants(source: Source, port: Port, case: Case, fam: Family, d: Dims, inside: bool) -> str:
    lines = [f"ARCHITECTURE = {_text(source.architecture)}"]
    if source.checkpoint is None:
        lines += [
            f"MODEL_TYPE = {_text(source.model_type)}",
            f"CONFIG = {_literal(source.config)}",
        ]
        if source.gains:
            lines.append(f"GAINS = {_literal(source.gains)}  # these are drawn larger")
    else:
        lines.append(f"CHECKPOINT = {_text(source.checkpoint)}")
        if source.revision:
            lines.append(f"REVISION = {_text(source.revision)}")
        if source.keep is not None:
            lines += [
                f"KEEP = {list(source.keep)}  # the layers that are needed",
                f"LAYER_NAME = {_text(fam.block.format(l=''))}",
                f"CHANGES = {_literal(source.changes)}",
            ]
    lines.append(f"TOKENS = torch.tensor({_table(case.tokens)})")
    if case.mask is not None:
        lines.append(f"MASK = torch.tensor({_table(case.mask)})")
    if port.kind == "hooked":
        lines.append(f"OFFICIAL_NAME = {_text(port.official or '')}")
        lines.append(f"SIZES = {_literal(port.sizes)}")
    if port.flags is not None:
        lines.append(f"PROCESSING = {_literal(port.flags)}")
    layer, whole = site_table(port, fam, inside)
    lines += [
        f"LAYERS = {case.layers}",
        f"ALLOWED = {case.allowed:.0e}",
        "# TransformerLens's name of a place, its hook there, HuggingFace's module, and whether",
        "# the place is that module's input, its output, or a part of its output.",
        f"SITES = {_rows(whole[:2])}",
        f"LAYER_SITES = {_rows(layer)}",
        f"LAST_SITES = {_rows(whole[2:])}",
        f"BLOCK = {_text(fam.block)}",
    ]
    if _factors(fam):
        lines.append(f"FACTORS = {_literal(_factors(fam))}  # applied outside the modules")
    if inside:
        lines.append(f"ATTENTION = {_text(fam.attn)}")
        lines.append(f"HEADS, KV_HEADS = {d.n_heads}, {d.n_kv_heads}")
    elif fam.qkv:
        lines.append(f"HEADS, KV_HEADS = {d.n_heads}, {d.n_kv_heads}")
    if fam.qkv:
        lines.append(f"D_HEAD = {d.d_head}")
    return "\n".join(lines)


def _factors(fam: Family) -> dict[str, float]:
    """What a site is multiplied by after its module: see ``families.py``."""
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
        ("ln_final", port.hooks.get("ln_final", ""), fam.ln_final, "output"),
    ]
    shown = [r if r[1] and r[2] else ("", "", "", "") for r in outside]
    return rows, shown


def _places(fam: Family) -> dict[str, tuple[str, str]]:
    """Site kind -> (module relative to the block, side)."""
    found: dict[str, tuple[str, str]] = {
        "resid_pre": ("", "input"),
        "resid_post": ("", "output"),
        "attn.z": (fam.o, "input"),
        **dict.fromkeys(INSIDE, ("", "attention")),
    }
    for name in ("ln1", "ln2"):
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
        found |= {"attn.out": (fam.o, "output"), "attn_out": (fam.ln1_post, "output")}
    else:
        found["attn_out"] = (fam.o, "output")
    if not fam.parallel:
        found["resid_mid"] = (fam.ln2 or fam.mlp, "input")
    out = fam.mlp_contribution or fam.mlp
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


def _float64() -> str:
    return '''
class Float64(TorchFunctionMode):
    """Turns every request for a narrower float into one for float64.

    Casting a model is not enough: norms, softmax and rotary tables ask for float32 by name.
    """

    NARROW = (torch.float32, torch.bfloat16, torch.float16)
    CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.CASTS:
            return args[0].to(torch.float64)
        args = tuple(self.wide(a) for a in args)
        result = func(*args, **{k: self.wide(v) for k, v in (kwargs or {}).items()})
        made = func in (torch.tensor, torch.as_tensor, torch.asarray)
        return result.to(torch.float64) if made and result.dtype in self.NARROW else result

    def wide(self, value):
        return torch.float64 if isinstance(value, torch.dtype) and value in self.NARROW else value


@contextlib.contextmanager
def precision(dtype):
    """Load and run in this dtype; float64 means float64 everywhere."""
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if dtype == torch.float64:
            torch.set_default_dtype(dtype)
            stack.callback(torch.set_default_dtype, before)
            stack.enter_context(Float64())
        yield
'''


_DRAW = '''
def build(folder):
    """A small random model in which no weight has a neutral value, saved to a folder."""
    config = transformers.AutoConfig.for_model(MODEL_TYPE, **CONFIG)
    config.architectures = [ARCHITECTURE]
    model = getattr(transformers, ARCHITECTURE)(config)
    generator = torch.Generator().manual_seed({seed})
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    with torch.no_grad():
        for @@LOOP@@:
            noise = torch.randn(parameter.shape, generator=generator)
{gains}            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            elif any(parameter is table for table in tables):
                parameter.copy_(0.8 * noise)
            else:
                parameter.copy_(1.5 / min(parameter.shape[-2:]) ** 0.5 * noise)
    model.save_pretrained(folder)
{tokenizer}    return folder
'''

_GAINS = """\
            for end, gain in GAINS.items():
                if name.endswith(end):
                    noise *= gain
"""

#: TransformerLens asks for a tokenizer; one word will do. Put in last: its braces are JSON's.
_TOKENIZER = """\
    words = {"type": "WordLevel", "vocab": {"<s>": 0}, "unk_token": "<s>"}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": words}
    (Path(folder) / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = {f"{name}_token": "<s>" for name in ("bos", "eos", "unk")}
    special["tokenizer_class"] = "PreTrainedTokenizerFast"
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(special))
"""

_SLICE = '''
def build(folder):
    """The checkpoint with the layers in KEEP only, saved to a folder."""
    config = transformers.AutoConfig.from_pretrained(CHECKPOINT{revision})
    whole = getattr(transformers, ARCHITECTURE).from_pretrained(
        CHECKPOINT{revision}, dtype=torch.float32
    )
    for name, value in CHANGES.items():
        setattr(config, name, value)
    config.architectures = [ARCHITECTURE]
    smaller = getattr(transformers, ARCHITECTURE)(config)
    state = {{}}
    for name, tensor in whole.state_dict().items():
        if not name.startswith(LAYER_NAME):
            state[name] = tensor
            continue
        layer, rest = name.removeprefix(LAYER_NAME).split(".", 1)
        if int(layer) in KEEP:
            state[f"{{LAYER_NAME}}{{KEEP.index(int(layer))}}.{{rest}}"] = tensor
    smaller.load_state_dict(state)
    smaller.save_pretrained(folder)
{tokenizer}    return folder
'''

_WHOLE = '''
def build(folder):
    """The checkpoint as it is."""
    return CHECKPOINT
'''


def _build(source: Source) -> str:
    if source.checkpoint is None:
        text = _DRAW.format(
            seed=source.seed, gains=_GAINS if source.gains else "", tokenizer="@@TOKENIZER@@"
        )
    elif source.keep is not None:
        revision = ", revision=REVISION" if source.revision else ""
        text = _SLICE.format(revision=revision, tokenizer="@@TOKENIZER@@")
    else:
        text = _WHOLE
    loop = "name, parameter in model.named_parameters()"
    if not source.gains:
        loop = "parameter in model.parameters()"
    return text.replace("@@LOOP@@", loop).replace("@@TOKENIZER@@", _TOKENIZER)


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


def _reference(case: Case, fam: Family, inside: bool) -> str:
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
    if _factors(fam):
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
        "PARTS": _indented(parts, 12),
        "ATTENTION": "    attention = Attention(seen)\n" if inside else "",
        "LAYER": _indented(layer, 8),
        "OPTIONS": _indented(options, 4),
    }
    watch = _WATCH_REFERENCE
    for name, lines in filled.items():
        watch = watch.replace(f"@@{name}@@\n", lines)
    watch = watch.replace("@@ENTER@@", "attention, " if inside else "")
    return text + watch.replace("@@ARGUMENTS@@", arguments)


def _indented(lines: Sequence[str], by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in lines)


_LOAD_BRIDGE = """
def load_port(folder, dtype):
    return TransformerBridge.boot_transformers(str(folder), dtype=dtype, device="cpu")
"""

_LOAD_DECLARED = """
def load_port(folder, dtype):
    return load_subject(Path(folder), dtype=dtype, device="cpu")
"""

_LOAD_HOOKED = '''
def load_port(folder, dtype):
    """The checkpoint under an official name, from a folder laid out as the hub's cache."""
    source, commit = Path(folder), "0" * 40
    repository = source / "cache" / f"models--{OFFICIAL_NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    for file in source.iterdir():
        if file.is_file():
            (snapshot / file.name).write_bytes(file.read_bytes())
    convert = loading_from_pretrained.convert_hf_model_config
    loading_from_pretrained.convert_hf_model_config = lambda *a, **k: convert(*a, **k) | SIZES
    try:
        return HookedTransformer.from_pretrained_no_processing(
            OFFICIAL_NAME,
            dtype=dtype,
            device="cpu",
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            cache_dir=str(source / "cache"),
            local_files_only=True,
        )
    finally:
        loading_from_pretrained.convert_hf_model_config = convert
'''


def _port(port: Port, case: Case) -> str:
    text = {"bridge": _LOAD_BRIDGE, "hooked": _LOAD_HOOKED, "declared": _LOAD_DECLARED}[port.kind]
    process = ""
    if port.flags is not None:
        if port.kind == "hooked":
            process = "    model.load_and_process_state_dict(model.state_dict(), **PROCESSING)\n"
        else:
            process = "    model.enable_compatibility_mode(disable_warnings=True, **PROCESSING)\n"
    arguments = "TOKENS"
    options = []
    if case.mask is not None:
        options.append("attention_mask=MASK")
        if port.kind == "hooked":
            left = case.mask[0][0] == 0
            options.append(f'padding_side="{"left" if left else "right"}"')
    if port.kind == "hooked":
        options.append("prepend_bos=False")
    if options:
        arguments += ", " + ", ".join(options)
    return (
        text
        + '''

def run_port(folder, dtype):
    """The same from TransformerLens's hooks."""
    model = load_port(folder, dtype).eval()
'''
        + process
        + """    seen, hooks = {}, []

    def watch(site, name, side):
        def read(value):
            value = value if isinstance(value, torch.Tensor) else value[0]
            if side.endswith("transposed"):
                value = value.transpose(1, 2)
            seen.setdefault(site, value.detach().clone())

        if name.startswith("module:"):
            module = model.get_submodule(name.removeprefix("module:"))
            module.register_forward_hook(lambda _, __, output: read(output))
        else:
            hooks.append((name, lambda value, hook: read(value)))

    for site, name, _, side in (*SITES, *LAST_SITES):
        if site:
            watch(site, name, side)
    for layer in range(LAYERS):
        for kind, name, _, side in LAYER_SITES:
            watch(f"blocks.{layer}.{kind}", name.format(l=layer), side)
    with torch.no_grad():
"""
        + f'        seen["logits"] = model.run_with_hooks({arguments}, fwd_hooks=hooks)\n'
        + "    return seen\n"
    )


def _difference() -> str:
    return '''
def difference(site, want, got, mask=None):
    """The largest difference relative to the largest value, rms likewise, and where."""
    want, got = want.double(), got.double()
    if want.shape != got.shape and want.numel() == got.numel():
        want = want.reshape(got.shape)
    if want.shape != got.shape and want.shape[1:] == got.shape[1:]:
        want, got = torch.broadcast_tensors(want, got)
    if want.shape != got.shape:
        return float("inf"), float("inf"), f"shape {tuple(got.shape)}, not {tuple(want.shape)}"
    gap = (got - want).abs()
    keep = torch.ones_like(gap, dtype=torch.bool)
    if site.endswith("attn.scores"):
        keep &= want > -6e4  # not what the mask forbids
    if mask is not None:
        real = mask.bool()
        if gap.ndim == 4 and site.endswith(("attn.scores", "attn.pattern")):
            keep &= real[:, None, :, None]
        elif gap.shape[:2] == real.shape:
            keep &= real.reshape(*real.shape, *[1] * (gap.ndim - 2))
        elif gap.shape[0] == real.numel():
            keep &= real.reshape(-1, *[1] * (gap.ndim - 1))
    gap, size = gap.where(keep, 0.0), want.abs().where(keep, 0.0)
    index = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
    at = tuple(index)
    digits = 9 if gap.max() > 1e-7 * size.max() else 17
    where = f"at {index}: HuggingFace {want[at]:.{digits}g}, TransformerLens {got[at]:.{digits}g}"
    rms = (gap.square().sum() / size.square().sum().clamp_min(1e-300)).sqrt()
    return float(gap.max() / size.max().clamp_min(1e-300)), float(rms), where
'''


def _main(case: Case, port: Port, exact: bool) -> str:
    mask = ", MASK" if case.mask is not None else ""
    lines = [
        "def main():",
        "    transformers.logging.set_verbosity_error()",
        "    transformers.logging.disable_progress_bar()",
        '    for package in ("transformer-lens", "transformers", "torch"):',
        "        print(package, version(package))",
        "    names = [row[0] for row in SITES if row[0]]",
        '    names += [f"blocks.{i}.{row[0]}" for i in range(LAYERS) for row in LAYER_SITES]',
        '    names += [row[0] for row in LAST_SITES if row[0]] + ["logits"]',
        "    with tempfile.TemporaryDirectory() as folder:",
        "        folder = build(folder)",
    ]
    if case.dtype is not None:
        lines += [
            "        with precision(torch.float64):",
            "            truth = run_reference(folder, torch.float64)",
            f"        want = run_reference(folder, torch.{case.dtype})",
            f"        got = run_port(folder, torch.{case.dtype})",
            "    for site in names:",
            "        if site not in got:",
            '            print(f"first diverging site: {site}, whose hook never fired")',
            "            return 1",
            f"        own = difference(site, truth[site], want[site]{mask})[1]",
            f"        _, error, where = difference(site, truth[site], got[site]{mask})",
            f"        floor = 2 * torch.finfo(torch.{case.dtype}).eps",
            "        if not error <= 4 * max(own, floor):",
            '            print(f"first diverging site: {site}, error {error:.2e} {where}; "',
            '                  f"HuggingFace\'s own error is {own:.2e}")',
            "            return 1",
        ]
    else:
        dtype = "torch.float64" if exact else "torch.float32"
        indent = "        "
        if exact:
            lines.append("        with precision(torch.float64):")
            indent += "    "
        lines += [
            f"{indent}want = run_reference(folder, {dtype})",
            *_run_port(case, f"run_port(folder, {dtype})", indent),
        ]
        if port.flags is not None:
            lines += [
                '    names = ["logits"]  # up to a constant per position, which processing removes',
                "    for side in (want, got):",
                '        side["logits"] = side["logits"] - side["logits"].mean(-1, keepdim=True)',
            ]
        lines += [
            "    for site in names:",
            "        if site not in got:",
            '            print(f"first diverging site: {site}, whose hook never fired")',
            "            return 1",
            f"        measured, _, where = difference(site, want[site], got[site]{mask})",
            "        if not measured <= ALLOWED:",
            '            size = f"relative difference {measured:.2e}"',
            '            print(f"first diverging site: {site}, {size} {where}")',
            f'            logits = difference("logits", want["logits"], got["logits"]{mask})',
            '            print(f"logits: relative difference {logits[0]:.2e} {logits[2]}")',
            "            return 1",
        ]
    lines += [
        '    print(f"{len(names)} sites agree")',
        "    return 0",
        "",
        "",
        'if __name__ == "__main__":',
        "    raise SystemExit(main())",
    ]
    return "\n".join(lines)


def _run_port(case: Case, call: str, indent: str) -> list[str]:
    if not case.crashes:
        return [f"{indent}got = {call}"]
    return [
        f"{indent}try:",
        f"{indent}    got = {call}",
        f"{indent}except Exception as error:",
        f'{indent}    said = f"{{type(error).__name__}}: {{error}}"',
        f'{indent}    print(f"first diverging site: logits, for TransformerLens raises {{said}}")',
        f"{indent}    return 1",
    ]


def _text(value: str) -> str:
    return json.dumps(value)


def _literal(value: Any) -> str:
    """A dictionary with one entry a line, or anything else on one."""
    if isinstance(value, Mapping) and value:
        entries = (f"    {_text(k)}: {_literal(v)},\n" for k, v in value.items())
        if any(isinstance(v, Mapping) and v for v in value.values()):
            nested = (e.replace("\n", "\n    ").rstrip(" ") for e in entries)
            return "{\n" + "".join(nested) + "}"
        return "{\n" + "".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(_literal, value))}]"
        if len(text) < 72:
            return text
        lines = textwrap.wrap(", ".join(map(_literal, value)), 84)
        return "\n".join(["[", *(f"        {line.rstrip(',')}," for line in lines), "    ]"])
    return _text(value) if isinstance(value, str) else repr(value)


def _table(rows: tuple[tuple[int, ...], ...]) -> str:
    """Nested lists of numbers, a row or part of one to a line."""
    if len(rows) == 1 and len(rows[0]) <= 12:
        return f"[{list(rows[0])}]"
    lines: list[str] = []
    for row in rows:
        if len(row) <= 16:
            lines.append(f"    {list(row)},")
            continue
        wrapped = textwrap.wrap(", ".join(map(str, row)), 84)
        lines += ["    [", *(f"        {line.rstrip(',')}," for line in wrapped), "    ],"]
    return "\n".join(["[", *lines, "]"])


def _rows(rows: Sequence[tuple[str, ...]]) -> str:
    body = "".join(f"    ({', '.join(map(_text, row))}),\n" for row in rows)
    return f"[\n{body}]"
