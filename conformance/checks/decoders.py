"""Decoding step by step with each library's own cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from conformance.implementations.lens_model import LensModel


class Decoder:
    """Decodes with the library's own cache."""

    #: Which keys of the reference it keeps: as they are used, or before their rotation.
    keys: str

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [batch, pos, d_vocab] of the next tokens [batch, pos]."""
        raise NotImplementedError

    @property
    def kept(self) -> bool:
        """Whether there is a cache to go on from, after a step."""
        return True

    def held(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of the first row, [pos, kv_head, d_head]; None if nothing was kept."""
        raise NotImplementedError

    def crossed(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same of a decoder's attention to its encoder, where it has any."""
        return None


class _BridgeDecoder(Decoder):
    """HuggingFace's cache, handed back to the bridge."""

    keys = "keys"

    def __init__(self, model: Any) -> None:
        self._model, self._cache = model, None

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._called(tokens)

    def _called(self, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        if self._cache is not None:
            options["past_key_values"] = self._cache
        logits: torch.Tensor
        logits, self._cache = self._model(
            tokens, return_type="logits_and_cache", use_past_kv_cache=True, **options
        )
        return logits

    @property
    def kept(self) -> bool:
        return self._cache is not None

    def held(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        return _first_row(self._cache, layer)


class _TwoStacks(_BridgeDecoder):
    """The same, of an encoder and a decoder: the encoder is given the same tokens each time."""

    def __init__(self, model: Any, tokens: torch.Tensor, encoder: int) -> None:
        super().__init__(model)
        self._tokens, self._encoder = tokens, encoder

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._called(self._tokens, decoder_input_ids=tokens)

    def held(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        cache: Any = self._cache
        return _first_row(cache.self_attention_cache, layer - self._encoder)

    def crossed(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        cache: Any = self._cache
        return _first_row(cache.cross_attention_cache, layer - self._encoder)


def _first_row(cache: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What HuggingFace's cache holds of a layer."""
    found = cache.layers[layer] if len(cache.layers) > layer else None
    if found is None or found.keys is None:
        return None
    return found.keys[0].transpose(0, 1), found.values[0].transpose(0, 1)


class _HookedDecoder(Decoder):
    """HookedTransformer's own cache, which holds keys before their rotation."""

    keys = "unrotated"

    def __init__(self, model: Any) -> None:
        from transformer_lens import TransformerLensKeyValueCache

        self._model = model
        self._cache: Any = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            tokens,
            prepend_bos=False,
            past_kv_cache=self._cache,
            attention_mask=torch.ones_like(tokens),
        )
        return logits

    def held(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._cache[layer]
        return found.past_keys[0], found.past_values[0]


def decoder_of(subject: LensModel, tokens: torch.Tensor) -> Decoder:
    """A decoder with an empty cache.

    Args:
        tokens: what an encoder is given, where there is one, [batch, pos].
    """
    model, encoder = subject.model, subject.family.encoder
    if encoder:
        return _TwoStacks(model, tokens, encoder)
    if subject.kind == "TransformerBridge":
        return _BridgeDecoder(model)
    return _HookedDecoder(model)
