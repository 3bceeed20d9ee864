"""Twins of dense decoders before Llama and of their kin; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import N_CTX, WINDOW
from conformance.checkpoints.twin import Twin
from conformance.checkpoints.twin_catalogue.settings import IDS

if TYPE_CHECKING:
    from collections.abc import Mapping

_MHA = {**IDS, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_MHA_CTX = {**_MHA, "max_position_embeddings": N_CTX}
_PYTHIA = {**_MHA_CTX, "hidden_size": 64, "intermediate_size": 80, "rotary_pct": 0.25}
_GPT = {**IDS, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": N_CTX}
_FALCON = {
    **IDS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": N_CTX,
    "bias": False,
    "alibi": False,
}

TWINS: Mapping[str, Twin] = {
    "gpt2": Twin("GPT2LMHeadModel", "gpt2", {**_GPT, "n_ctx": N_CTX}),
    # Stanford's GPT-2s: the scale of layer l is divided by l + 1.
    "gpt2-scaled-by-layer": Twin(
        "GPT2LMHeadModel",
        "gpt2",
        {
            **_GPT,
            "n_ctx": N_CTX,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
    ),
    "gpt-neox": Twin(
        "GPTNeoXForCausalLM", "gpt_neox", {**_MHA_CTX, "intermediate_size": 80, "rotary_pct": 0.5}
    ),
    # Pythia and the first StableLM rotate a quarter of each head; 20B has another gelu besides.
    "pythia": Twin("GPTNeoXForCausalLM", "gpt_neox", {**_PYTHIA, "hidden_act": "gelu"}),
    "gpt-neox-20b": Twin("GPTNeoXForCausalLM", "gpt_neox", {**_PYTHIA, "hidden_act": "gelu_fast"}),
    "gpt-neo": Twin(
        "GPTNeoForCausalLM",
        "gpt_neo",
        {
            **IDS,
            "hidden_size": 48,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
            "max_position_embeddings": N_CTX,
        },
    ),
    "gptj": Twin("GPTJForCausalLM", "gptj", {**_GPT, "rotary_dim": 6}),
    "opt": Twin("OPTForCausalLM", "opt", {**_MHA_CTX, "ffn_dim": 80, "word_embed_proj_dim": 48}),
    "bloom": Twin(
        "BloomForCausalLM", "bloom", {**IDS, "hidden_size": 48, "n_layer": 3, "n_head": 8}
    ),
    # ALiBi's slopes are a rule of their own where heads are no power of two (as in Bloom 560m's
    # larger relatives: 176B has 112).
    "bloom-six-heads": Twin(
        "BloomForCausalLM", "bloom", {**IDS, "hidden_size": 48, "n_layer": 3, "n_head": 6}
    ),
    # Published without its head, which is the embedding.
    "bloom-headless": Twin(
        "BloomModel", "bloom", {**IDS, "hidden_size": 48, "n_layer": 3, "n_head": 8}
    ),
    "falcon-7b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "new_decoder_architecture": False,
            "multi_query": True,
            "parallel_attn": True,
        },
    ),
    "falcon-40b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "multi_query": False,
            "parallel_attn": True,
        },
    ),
    # Falcon-RW: alibi, biases, one key and value per query head, attention before the MLP.
    "falcon-rw": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_attention_heads": 8,
            "bias": True,
            "alibi": True,
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
        },
    ),
    # Falcon-40B and 180B with their flags as published: the new architecture ignores multi_query.
    "falcon-180b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "multi_query": True,
            "parallel_attn": True,
        },
    ),
    # Falcon2-11B: the new architecture with one norm, its other flags as published.
    "falcon-11b": Twin(
        "FalconForCausalLM",
        "falcon",
        {
            **_FALCON,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "multi_query": True,
            "parallel_attn": True,
        },
    ),
    "mpt": Twin(
        "MptForCausalLM",
        "mpt",
        {**IDS, "d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": N_CTX},
    ),
    "phi": Twin(
        "PhiForCausalLM", "phi", {**_MHA_CTX, "intermediate_size": 80, "partial_rotary_factor": 0.5}
    ),
    # Phi-2 rotates 32 of the 80 dimensions of a head.
    "phi-2": Twin(
        "PhiForCausalLM",
        "phi",
        {
            **_MHA_CTX,
            "hidden_size": 60,
            "num_attention_heads": 6,
            "intermediate_size": 80,
            "partial_rotary_factor": 0.4,
        },
    ),
}
