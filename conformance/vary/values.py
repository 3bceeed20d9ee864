"""Which fields of a HuggingFace config change the mathematics, and what else they may be. Data.

A field is matched by name, first by :data:`OUT` (it changes nothing that is judged here), then by
:data:`RULES`. A field that neither knows is not varied, and the output says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: What a value is called -> the fields that it sets.
Values = Mapping[str, Mapping[str, Any]]
#: Name of the field, its own value, the whole config -> other values; None: the rule has none.
Rule = Callable[[str, Any, Mapping[str, Any]], Values | None]

#: Fields that change nothing judged here: pattern of the whole name -> why.
OUT: Mapping[str, str] = {
    r".*(dropout|pdrop|layerdrop|jitter_noise).*": "off when a model is judged",
    r"use_cache|return_dict|output_\w+|dtype|chunk_size_feed_forward|is_encoder_decoder|is_decoder"
    r"|pruned_heads|tie_encoder_decoder|torchscript|add_cross_attention": "how a model is run",
    r"\w+_token_id|\w+_token_ids": "names a token",
    r"init\w*_(range|std|factor|scale)|init_std|rescale_\w+|mup_init\w*": "how weights are drawn",
    r"vocab_size|hidden_size|n_embd|d_model|intermediate_size|ffn_dim|ffn_hidden_size|num_layers"
    r"|num_hidden_layers|n_layers?|max_position_embeddings|n_positions|n_ctx|max_seq_len"
    r"|moe_intermediate_size|shared_expert_intermediate_size": "a size: the same formula",
    r"d_head|d_mlp": "a size: the same formula",
    r"eps|layout": "TransformerLens's own format does not state it, or says by it how it is stored",
    r"num_experts|num_local_experts|n_routed_experts": "a size: the same formula",
    r"\w*aux_loss\w*|router_z_loss\w*|\w+_alpha_loss": "of the loss in training",
    r"summary_\w+|classifier_\w+|problem_type|id2label|label2id|num_labels|finetuning_task"
    r"|task_specific_params|layer_norm_elementwise_affine_head": "of another task's head",
    r"pretraining_tp|slow_but_exact": "in how many parts a product is computed",
    r"architectures|model_type|transformers_version|_name_or_path|auto_map": "names the model",
    r"original_max_position_embeddings|max_window_layers": "set with what reads it",
}

#: One of each kind of activation that checkpoints have; gelu_fast and its like are among these.
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "quick_gelu", "relu2")

#: Kinds of rotary positions (``transformers.modeling_rope_utils``), for a context of 96. Factors
#: of longrope are filled in to the size of what is rotated.
ROPE_TYPES: Mapping[str, Mapping[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    "yarn, scaled attention": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 24,
        "attention_factor": 0.8,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 3.0,
        "short_factor": "1 + i / 8",
        "long_factor": "2 + i / 4",
        "original_max_position_embeddings": 32,
    },
}
#: What is left of rotary parameters when their type changes.
ROPE_SHARED = ("rope_theta", "partial_rotary_factor")
#: Context length of every twin, and its window.
_N_CTX, _WINDOW, _OTHER_WINDOW = 96, 12, 5
_SLIDING, _FULL = "sliding_attention", "full_attention"
#: Names of choices, and what they may be.
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "topk_method": ("greedy", "group_limited_greedy"),
    "scoring_func": ("softmax", "sigmoid"),
    "position_embedding_type": ("rope", "nope"),
    "normalization": ("LN", "LNPre"),
    "positions": ("standard", "shortformer"),
}


def _named(name: str, values: Sequence[Any], own: Any) -> Values | None:
    """The values other than its own, in order."""
    found = {str(v): {name: v} for v in values if v != own or type(v) is not type(own)}
    return found or None


def _boolean(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    return _named(name, (not own,), own) if isinstance(own, bool) else None


def _activation(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    return _named(name, ACTIVATIONS, own) if isinstance(own, str) else None


def _key_values(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    """One for all heads, one for each, or one for a few."""
    heads = next((config[n] for n in ("num_attention_heads", "n_head") if n in config), None)
    if not isinstance(heads, int) or not isinstance(own, int):
        return None
    return _named(name, [n for n in (1, 2, heads) if heads % n == 0], own)


def _heads(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    """Another number of heads, one of them no power of two: ALiBi has a rule of its own there."""
    if any(n in config for n in ("num_key_value_heads", "head_dim", "num_kv_heads")):
        return None
    width = next((config[n] for n in ("hidden_size", "n_embd", "d_model") if n in config), 0)
    fitting = [n for n in (6, 8, 4) if n != own and width % n == 0 and width // n % 2 == 0]
    return _named(name, fitting[:1], own)


def _head_dim(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    """What the width divided by the heads is, and what it is not."""
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or not isinstance(config.get("hidden_size"), int):
        return None  # heads of a state space have a size of their own
    derived = config["hidden_size"] // heads
    return _named(name, (derived, 12), own if own is not None else derived)


def _window(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    if "use_sliding_window" in config:
        return _switched_window(name, config)
    return _named(name, (None, _WINDOW, _OTHER_WINDOW), own)


def _switched_window(name: str, config: Mapping[str, Any]) -> Values:
    """A window that a flag turns on, in the layers that the label says.

    Architectures count ``max_window_layers`` from either end, so kinds of layers are stated too
    where the config has them; without both the window is in every layer.
    """
    layers = config.get("num_hidden_layers", 0)
    on = {"use_sliding_window": True, name: _WINDOW}
    first = {"in every layer": 0}
    if "max_window_layers" in config or "layer_types" in config:
        first["in the last layer"] = layers - 1
    values: dict[str, dict[str, Any]] = {}
    for label, since in first.items():
        values[label] = dict(on)
        if "max_window_layers" in config:
            values[label]["max_window_layers"] = since
        if "layer_types" in config:
            kinds = [_FULL] * since + [_SLIDING] * (layers - since)
            values[label]["layer_types"] = kinds
    return values


def _layer_types(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    if not isinstance(own, list) or not set(own) <= {_SLIDING, _FULL}:
        return None
    if config.get("sliding_window") is None:
        return None
    other = {_SLIDING: _FULL, _FULL: _SLIDING}
    layers = {
        "all sliding": [_SLIDING] * len(own),
        "all full": [_FULL] * len(own),
        "exchanged": [other[kind] for kind in own],
    }
    return {label: {name: kinds} for label, kinds in layers.items() if kinds != own}


def _eps(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    return _named(name, (0.1,), own) if isinstance(own, float) else None


def _softcap(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    return _named(name, (None, 7.5), own)


def _factor(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    """A scale: not neutral, and not its own."""
    if isinstance(own, bool) or not isinstance(own, (int, float)):
        return None
    return _named(name, (own * 1.75 if own else 0.7,), own)


def _unset_scale(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    return _named(name, (0.3,), own) if own is None else None


def _whole_scale(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    return _named(name, (20,), own)


def _among(*values: Any) -> Rule:
    return lambda name, own, config: _named(name, values, own)


def _choice(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    return _named(name, _CHOICES[name], own)


#: Pattern of the whole name -> what else the field may be. The first that fits and has values.
RULES: tuple[tuple[str, Rule], ...] = (
    (r"num_key_value_heads|num_kv_heads|n_head_kv", _key_values),
    (r"num_attention_heads|n_heads?|num_heads", _heads),
    (r"head_dim", _head_dim),
    (r"\w*(hidden_act|activation|activation_function|act_fn|hidden_activation)", _activation),
    (r"sliding_window|window_size", _window),
    (r"layer_types", _layer_types),
    (r"\w*(_eps|_epsilon)", _eps),
    (r"\w*softcap\w*", _softcap),
    (r"query_pre_attn_scalar", _whole_scale),
    (r"clip_qkv", _among(None, 1.5)),
    (r"logit_scale|softmax_scale", _unset_scale),
    (r"alibi_bias_max", _among(4)),
    (r"rotary_dim", _among(4, None)),
    (r"word_embed_proj_dim", _among(40)),
    (r"n_inner", _among(80)),
    (r"num_ln_in_parallel_attn", _among(1, 2)),
    (r"num_experts_per_tok|moe_topk|moe_k|experts_per_token", _among(1, 3)),
    (r"n_shared_experts|num_shared_experts", _among(1, 2)),
    (r"first_k_dense_replace", _among(0, 2)),
    (r"decoder_sparse_step", _among(1, 2)),
    (r"mlp_only_layers", _among([], [1])),
    (r"use_bidirectional_attention", _among(None, True)),
    ("|".join(_CHOICES), _choice),
    (r"rotary_pct|partial_rotary_factor", _among(0.5, 1.0)),
    (r".*", _boolean),
    (r"\w*(scal|multiplier|alpha|limit|factor|clip)\w*", _factor),
)


def out(name: str) -> str | None:
    """Why a field is left out; None if it is not."""
    return next((why for pattern, why in OUT.items() if re.fullmatch(pattern, name)), None)


def others(name: str, own: Any, config: Mapping[str, Any]) -> Values | None:
    """What else a field may be; None if no rule says."""
    for pattern, rule in RULES:
        if re.fullmatch(pattern, name) and (found := rule(name, own, config)):
            return found
    return None
