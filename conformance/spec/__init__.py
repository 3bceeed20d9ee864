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
    ModelSpec,
    Name,
    NameSource,
    PathSource,
    Showing,
    Source,
    Spec,
    SubjectSpec,
    TwinSource,
    Variant,
    WheelPackage,
    WheelSource,
    id_of,
)

__all__ = [
    "BUILTIN_SUBJECTS",
    "DTYPES",
    "EVERY_CHECK",
    "SCHEMA_VERSION",
    "DTypeName",
    "Defect",
    "ExpectedFailure",
    "Gap",
    "HubSource",
    "Ledger",
    "ModelSpec",
    "Name",
    "NameSource",
    "PathSource",
    "Showing",
    "Source",
    "Spec",
    "SubjectSpec",
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
