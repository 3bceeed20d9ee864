"""Twins of encoders that read pixels or waves and no tokens; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping

_IMAGE = {"image_size": 28, "patch_size": 7, "num_labels": 13}
_WAVE = {
    "conv_dim": (18, 22),
    "conv_kernel": (5, 3),
    "conv_stride": (4, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 3,
}
_STABLE = {**_WAVE, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
_GAINS = {"q_proj.bias": 2.0}

TWINS: Mapping[str, Twin] = {
    "vit": Twin("ViTForImageClassification", "vit", _IMAGE),
    "vit-headless": Twin("ViTModel", "vit", _IMAGE),
    "deit": Twin("DeiTForImageClassification", "deit", _IMAGE),
    "deit-headless": Twin("DeiTModel", "deit", _IMAGE),
    "ast": Twin(
        "ASTForAudioClassification",
        "audio-spectrogram-transformer",
        {
            "patch_size": 6,
            "frequency_stride": 4,
            "time_stride": 5,
            "max_length": 31,
            "num_mel_bins": 14,
            "num_labels": 13,
        },
    ),
    "hubert": Twin("HubertForCTC", "hubert", _WAVE),
    "hubert-large": Twin("HubertForCTC", "hubert", _STABLE, _GAINS),
    "hubert-headless": Twin("HubertModel", "hubert", _WAVE, _GAINS),
    "wav2vec2": Twin("Wav2Vec2ForCTC", "wav2vec2", _WAVE),
    "wav2vec2-large": Twin("Wav2Vec2ForCTC", "wav2vec2", _STABLE, _GAINS),
    "wav2vec2-headless": Twin("Wav2Vec2Model", "wav2vec2", _WAVE, _GAINS),
}
