"""What a twin is; plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Twin:
    """One tiny checkpoint.

    Attributes:
        architecture: HuggingFace class.
        model_type: HuggingFace config class, by its ``model_type``.
        config: its arguments.
        gains: end of a parameter's or buffer's name -> how much larger it is drawn than others,
            where the usual size leaves part of the mathematics untouched; 0 keeps a constant.
        reads_text: it has a tokenizer.
    """

    architecture: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    reads_text: bool = True
