"""Writes ``conformance/footprint/shapes.toml``: the sizes of the models of ``[[name]]``.

    python benchmarks/name_shapes.py SHAPES.toml > conformance/footprint/shapes.toml

``SHAPES.toml`` has a table for each model with the columns of TransformerLens's table of model
properties (``generated/model_properties_table.html`` of its documentation): ``d_model``,
``n_layers`` and so on. Parameters are counted on the meta device: the twin's config class, with the
twin's settings and the model's sizes. Names without a twin are counted by a formula.
"""

from __future__ import annotations

import sys
import tomllib
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

HEAD = """\
# Sizes of the models of [[name]]. Written by benchmarks/name_shapes.py: the sizes are those of
# TransformerLens's table of model properties, as its documentation publishes it; parameters are
# counted on the meta device, in the config class and with the settings of the name's twin.
"""

#: Column of the table -> what config classes call it.
NAMES = {
    "d_model": ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"),
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers"),
    "n_heads": ("num_attention_heads", "n_head", "num_heads"),
    "n_key_value_heads": ("num_key_value_heads",),
    "d_head": ("head_dim", "d_kv"),
    "d_mlp": ("intermediate_size", "ffn_dim", "n_inner", "d_ff"),
    "d_vocab": ("vocab_size",),
    "n_ctx": ("max_position_embeddings", "n_positions", "n_ctx"),
    "window_size": ("sliding_window", "window_size"),
    "num_experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
}

#: Windows that the table leaves out, from the config.json of each; of others the class's own is
#: taken. A twin's is a fraction of its context.
WINDOWS = {"microsoft/Phi-3-mini-4k-instruct": 2047}


def of_twin(twin: Any, facts: dict[str, Any]) -> Any:
    """The shape of the twin's config class at the model's sizes."""
    import transformers

    from conformance.checkpoints.shrink import WINDOW, shrink
    from conformance.footprint.shapes import of_config

    default = transformers.AutoConfig.for_model(twin.model_type)
    inner = "text_config" if hasattr(default, "text_config") else None
    known = getattr(default, "text_config", default)
    changes = dict(twin.config)
    text = dict(changes.get("text_config", {})) if inner else changes
    facts = {"n_key_value_heads": facts["n_heads"], **facts}
    usual = getattr(known, "sliding_window", None)
    if usual and text.get("sliding_window", WINDOW) == WINDOW:
        facts.setdefault("window_size", usual)
    for column, names in NAMES.items():
        for name in names:
            if column in facts and (name in text or hasattr(known, name)):
                text[name] = facts[column]
    for name in ("layer_types", "attention_types", "attention_layers", "window_layers"):
        text.pop(name, None)
    if twin.model_type == "gpt_neo":
        text["attention_types"] = [[["global", "local"], facts["n_layers"] // 2 or 1]]
        if facts["n_layers"] % 2:
            text["attention_types"] = [[["global"], facts["n_layers"]]]
    if inner:
        changes["text_config"] = text
    return of_config(shrink(twin.model_type, changes), twin.architecture)


def of_formula(facts: dict[str, Any]) -> Any:
    """A decoder of TransformerLens's own, or of a class that transformers has not: its matrices."""
    from conformance.footprint.shapes import Shape

    d, heads, d_head = facts["d_model"], facts["n_heads"], facts["d_head"]
    kv, d_mlp = facts.get("n_key_value_heads", heads), facts.get("d_mlp", 0)
    each = d * d_head * 2 * (heads + kv) + d * d_mlp * (3 if facts.get("gated_mlp") else 2)
    rotary = facts["positional_embedding_type"] == "rotary"
    tables = 2 * facts["d_vocab"] * d + (0 if rotary else facts["n_ctx"] * d)
    return Shape(
        parameters=facts["n_layers"] * each + tables,
        layers=facts["n_layers"],
        d_model=d,
        heads=heads,
        kv_heads=kv,
        d_head=d_head,
        d_mlp=d_mlp,
        d_vocab=facts["d_vocab"],
        context=facts["n_ctx"],
    )


def main() -> None:
    import transformers

    from conformance.checkpoints.twin_catalogue import TWINS
    from conformance.spec import load_spec

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    spec = load_spec(Path("models.toml"))
    twins = {model.id: model.source.twin for model in spec.models if model.evidence == "twin"}
    table = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    by_end = {name.rsplit("/", 1)[-1]: facts for name, facts in table.items()}
    print(HEAD)
    print("[shape]")
    for name in spec.names:
        facts = table.get(name.hub) or by_end.get(name.hub.rsplit("/", 1)[-1])
        if facts is None or "d_vocab" not in facts:
            print(f"{name.hub}: no sizes", file=sys.stderr)
            continue
        if name.hub in WINDOWS:
            facts = {"window_size": WINDOWS[name.hub], **facts}
        shape = None
        if name.twin:
            try:
                shape = of_twin(TWINS[twins[name.twin]], facts)
            except Exception as error:
                print(f"{name.hub}: {type(error).__name__}: {error}", file=sys.stderr)
        shape = shape or of_formula(facts)
        fields = ", ".join(f"{k} = {str(v).lower()}" for k, v in asdict(shape).items() if v)
        print(f'"{name.hub}" = {{ {fields} }}')


if __name__ == "__main__":
    main()
