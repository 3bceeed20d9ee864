"""The sizes of one checkpoint, whatever its config class calls them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes of one checkpoint's language model, read from its HuggingFace config.

    ``d_head`` is that of queries and keys, ``d_head_v`` that of values. ``windows`` has for each
    layer how many tokens back it sees, itself included; ``chunks`` the length of the chunks that
    see nothing of each other (empty: no layer has any). ``layers`` has sizes for each layer where
    heads differ; those of the whole are then the widest layer's. ``stand_ins`` counts the last
    ids, which stand for images and sounds. ``pad`` is the id that fills a batch: 0, which a mask
    leaves out, but for models that count positions by it.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_experts: int
    windows: tuple[int | None, ...]
    d_head_v: int
    chunks: tuple[int | None, ...] = ()
    stand_ins: int = 0
    pad: int = 0
    layers: tuple[Dims, ...] = ()

    def of(self, layer: int) -> Dims:
        """The sizes of one layer; these where all are alike."""
        return self.layers[layer] if self.layers else self

    @property
    def n_ids(self) -> int:
        """Ids below this one are text."""
        return self.d_vocab - self.stand_ins

    def chunk(self, layer: int) -> int | None:
        """The length of a layer's chunks, or None."""
        return self.chunks[layer] if self.chunks else None

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.n_heads // max(1, self.n_kv_heads)


def _first(config: Any, *names: str, default: Any = None) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return default


#: How names of settings end whose token stands for an image or a sound, or for its bounds.
_STAND_INS = ("_token_id", "_token_index")
_OF_TEXT = ("_pad", "pad", "bos", "eos", "decoder_start", "sep", "unk", "mask", "cls")


def _stand_ins(config: Any, d_vocab: int) -> int:
    """How many of the last ids stand for images and sounds."""
    stated = {k: v for k, v in config.to_dict().items() if k.endswith(_STAND_INS)}
    found = [
        v
        for k, v in stated.items()
        if isinstance(v, int) and d_vocab // 2 < v < d_vocab and not k.startswith(_OF_TEXT)
    ]
    return d_vocab - min(found, default=d_vocab)


#: Types of config whose models count positions themselves, padding left out by its id.
_COUNTING = ("roberta", "m2m_100")


#: Classes without a head, whose last hidden states stand for logits.
_STATES_ALONE = frozenset(("ViTModel", "DeiTModel", "HubertModel", "Wav2Vec2Model"))


def dims(config: Any) -> Dims:
    """Sizes from a HuggingFace config, whatever its architecture calls them."""
    whole, config = config, config.get_text_config()
    n_layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if config.model_type in ("t5", "mt5", "switch_transformers", "longt5"):
        n_layers = config.num_layers + config.num_decoder_layers
    elif whole.model_type == "t5gemma":
        n_layers = whole.encoder.num_hidden_layers + whole.decoder.num_hidden_layers
    elif getattr(config, "encoder_layers", None):
        n_layers = config.encoder_layers + config.decoder_layers
    d_model = _first(config, "hidden_size", "n_embd", "d_model")
    layer_types = _first(config, "layer_types")
    if whole.model_type == "t5gemma":
        layer_types = [*whole.encoder.layer_types, *whole.decoder.layer_types]
    chunked = "chunked_attention" in (layer_types or ())
    kinds = layer_types if chunked else ()
    window = _first(config, "sliding_window", "window_size")
    if config.model_type == "gpt_neo":
        windows = tuple(window if t == "local" else None for t in config.attention_layers)
    elif layer_types is not None:
        windows = tuple(window if t == "sliding_attention" else None for t in layer_types)
    else:
        windows = (window if isinstance(window, int) else None,) * n_layers
    if whole.model_type == "t5gemma":  # both ways: as many tokens beside a token's own
        ahead = whole.encoder.num_hidden_layers
        windows = (*(w and w + 1 for w in windows[:ahead]), *windows[ahead:])
    contexts = ("max_position_embeddings", "max_encoder_position_embeddings", "n_positions")
    n_ctx = _first(config, *contexts, "max_seq_len", default=2048)
    if config.model_type == "roberta":
        n_ctx -= config.pad_token_id + 1  # rows before position 0
    d_vocab = _first(config, "vocab_size", default=0) or config.num_labels  # classes
    if _STATES_ALONE.intersection(whole.architectures or ()):
        d_vocab = d_model
    of_layers = [_heads(own) for own in _each(config, n_layers)]
    found = Dims(
        n_layers=n_layers,
        d_model=d_model,
        **max(of_layers or [_heads(config)], key=_width),
        chunks=tuple(
            config.attention_chunk_size if t == "chunked_attention" else None for t in kinds
        ),
        d_vocab=d_vocab,
        stand_ins=0 if whole is config else _stand_ins(whole, d_vocab),
        n_ctx=n_ctx,
        n_experts=_first(config, "num_local_experts", "num_experts", "n_routed_experts", default=0),
        windows=windows,
        pad=config.pad_token_id if config.model_type in _COUNTING else 0,
    )
    layers = tuple(dataclasses.replace(found, **own) for own in of_layers)
    return dataclasses.replace(found, layers=layers)


def _each(config: Any, n_layers: int) -> list[Any]:
    """The config as each layer reads it, where it states sizes by layer (transformers 5.23's
    ``per_layer_config``)."""
    if not getattr(config, "is_heterogeneous", False):
        return []
    return [config.per_layer_config[layer] for layer in range(n_layers)]


def _heads(config: Any) -> dict[str, Any]:
    """How many heads attention has, and their sizes."""
    n_heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads", default=0)
    n_kv = _first(config, "num_key_value_heads", "num_kv_heads", default=n_heads)
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        n_kv = 1 if config.multi_query else n_heads
    if config.model_type == "gpt_bigcode":
        n_kv = 1 if config.multi_query else n_heads
    d_model = _first(config, "hidden_size", "n_embd", "d_model")
    d_head = _first(config, "head_dim", "d_kv", default=d_model // max(1, n_heads))
    latent = _first(config, "kv_lora_rank") is not None
    if latent:  # whose head_dim, if any, is that of the rotated part
        d_head = config.qk_nope_head_dim + config.qk_rope_head_dim
    d_head_v = config.v_head_dim if latent else d_head
    return {"n_heads": n_heads, "n_kv_heads": n_kv, "d_head": d_head, "d_head_v": d_head_v}


def _width(heads: dict[str, Any]) -> int:
    return int((heads["n_heads"] + 2 * heads["n_kv_heads"]) * heads["d_head"])
