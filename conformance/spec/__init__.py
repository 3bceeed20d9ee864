"""``models.toml`` -> :class:`Spec`: validated whole, every problem reported at once.

Importing this package imports no tensor library.
"""

from __future__ import annotations

from conformance.spec.reading import load_spec
from conformance.spec.tables import (
    BUILTIN_SUBJECTS,
    EVERY_CHECK,
    SCHEMA_VERSION,
    DTypeName,
    ExpectedFailure,
    Gap,
    HubSource,
    ModelSpec,
    Name,
    NameSource,
    PathSource,
    Source,
    Spec,
    SubjectSpec,
    TwinSource,
    WheelPackage,
    WheelSource,
    id_of,
)

__all__ = [
    "BUILTIN_SUBJECTS",
    "EVERY_CHECK",
    "SCHEMA_VERSION",
    "DTypeName",
    "ExpectedFailure",
    "Gap",
    "HubSource",
    "ModelSpec",
    "Name",
    "NameSource",
    "PathSource",
    "Source",
    "Spec",
    "SubjectSpec",
    "TwinSource",
    "WheelPackage",
    "WheelSource",
    "id_of",
    "load_spec",
]
