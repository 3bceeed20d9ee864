"""Twins of masked encoders, and of decoders built like them; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.shrink import N_CTX
from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping

TWINS: Mapping[str, Twin] = {
    "bert": Twin("BertForMaskedLM", "bert", gains={"query.bias": 2.0}),
    "bert-decoder": Twin("BertLMHeadModel", "bert", {"is_decoder": True}),
    # Rows before position 0: as many as the padding token's id, and one.
    "roberta": Twin(
        "RobertaForMaskedLM",
        "roberta",
        {"max_position_embeddings": N_CTX + 2, "bos_token_id": 0, "pad_token_id": 1},
    ),
    "openai-gpt": Twin("OpenAIGPTLMHeadModel", "openai-gpt"),
}
