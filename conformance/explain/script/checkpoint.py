"""The script's checkpoint: drawn from a seed, a few layers of another, or as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.explain.script.cases import Source


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


def build_part(source: Source) -> str:
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
