"""Settles whether a TransformerLens port of a model computes the same thing as HuggingFace."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__version__ = "0.1.0"

#: Seeds of everything random, written into every records header.
SEEDS: Mapping[str, int] = {"prompts": 20260101, "twins": 0}
