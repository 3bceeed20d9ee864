"""Settings that twins of several families share; plain data, no torch."""

from __future__ import annotations

from conformance.checkpoints.shrink import N_CTX

IDS = {"vocab_size": 113, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GQA = {
    **IDS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": N_CTX,
}
HEAD = {**GQA, "head_dim": 10}
