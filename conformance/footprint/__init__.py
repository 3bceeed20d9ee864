"""How much memory a run of a model needs, from its configuration alone, and which machine has it.

Importing this package imports no tensor library.
"""

from __future__ import annotations

from conformance.footprint.fitting import tier_of
from conformance.footprint.predict import Footprint, Phase, predict
from conformance.footprint.shapes import Shape, of_config, of_name

__all__ = ["Footprint", "Phase", "Shape", "of_config", "of_name", "predict", "tier_of"]
