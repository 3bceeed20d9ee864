"""``models.toml`` and its ledger -> :class:`Spec`: validated whole, every problem reported at once.

Importing this package imports no tensor library.
"""

from __future__ import annotations

from conformance.spec.defects import named, relisted, runs
from conformance.spec.reading import load_spec
from conformance.spec.tables import (
    BUILTIN_SUBJECTS,
    DTYPES,
    EVERY_CHECK,
    SCHEMA_VERSION,
    Defect,
    DTypeName,
    ExpectedFailure,
    Gap,
    HubSource,
    Ledger,
    Memory,
    ModelSpec,
    Name,
    NameSource,
    PathSource,
    Showing,
    Source,
    Spec,
    SubjectSpec,
    Tier,
    TwinSource,
    Variant,
    WheelPackage,
    WheelSource,
    id_of,
)
from conformance.spec.tiers import BEYOND, DEFAULT_TIERS

__all__ = [
    "BEYOND",
    "BUILTIN_SUBJECTS",
    "DEFAULT_TIERS",
    "DTYPES",
    "EVERY_CHECK",
    "SCHEMA_VERSION",
    "DTypeName",
    "Defect",
    "ExpectedFailure",
    "Gap",
    "HubSource",
    "Ledger",
    "Memory",
    "ModelSpec",
    "Name",
    "NameSource",
    "PathSource",
    "Showing",
    "Source",
    "Spec",
    "SubjectSpec",
    "Tier",
    "TwinSource",
    "Variant",
    "WheelPackage",
    "WheelSource",
    "id_of",
    "load_spec",
    "named",
    "relisted",
    "runs",
]
