"""The configuration of a model of TransformerLens's own format, in TransformerLens's words."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from conformance.native import ARCHITECTURE


class NativeConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """Sizes and settings.

    Args:
        d_head: may be another size than ``d_model / n_heads``.
        d_mlp: neurons of an MLP; not used by models without one.
        n_ctx: positions that have an embedding.
        act_fn: ``gelu`` (with the error function), ``gelu_new`` (with tanh), ``relu``, ``silu``,
            ``solu``, ``solu_ln`` (SoLU and a LayerNorm over the neurons).
        attn_only: blocks have no MLP.
        normalization: ``LN``; ``LNPre``, whose weights were folded into what reads it; or None.
        positions: ``standard``, added to the embedding; or ``shortformer``, added to what queries
            and keys are made of.
        eps: what is added to a LayerNorm's variance; TransformerLens's is 1e-5.
        unembed_bias: the unembedding adds one.
        layout: how the published files hold the weights: ``neel``, ``neel-solu-old``, ``mingpt``.

    Raises:
        ValueError: a setting that is none of these.
    """

    model_type = "transformer_lens_native"
    attribute_map = {  # noqa: RUF012 - transformers declares it so
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "head_dim": "d_head",
        "intermediate_size": "d_mlp",
        "max_position_embeddings": "n_ctx",
    }

    d_model: int = 48
    n_layers: int = 3
    n_heads: int = 4
    d_head: int = 12
    d_mlp: int = 80
    n_ctx: int = 96
    vocab_size: int = 113
    act_fn: str = "gelu"
    attn_only: bool = False
    normalization: str | None = "LN"
    positions: str = "standard"
    eps: float = 1e-5
    layout: str = "neel"
    unembed_bias: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        known = {
            "act_fn": ("gelu", "gelu_new", "relu", "silu", "solu", "solu_ln"),
            "normalization": ("LN", "LNPre", None),
            "positions": ("standard", "shortformer"),
            "layout": ("neel", "neel-solu-old", "mingpt"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{ARCHITECTURE}: {name} is {getattr(self, name)!r}, not {values}")
