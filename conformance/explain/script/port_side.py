"""How the script loads the port and reads its hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.explain.script.cases import Case, Port


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


def port_part(port: Port, case: Case) -> str:
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
