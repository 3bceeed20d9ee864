"""Twins of decoders that see images or hear sounds; plain data, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.checkpoints.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Mapping

TWINS: Mapping[str, Twin] = {}
