"""What a cache entry is filed under: everything that determines its contents, and no name."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance.checkpoints.twin_catalogue import TWINS
from conformance.spec import ModelSpec, TwinSource, WheelSource

#: Raise it when the way checkpoints are converted changes, so that old entries are not used.
CONVERSION = 1


def cache_key(model: ModelSpec) -> str:
    """A directory name that changes with the source, and with the code that converts it.

    The id is left out, so that renaming a model fetches nothing and entries with one source
    share their files. So is every other readable name: a loader that guesses an architecture
    from the path must find nothing to guess from.
    """
    facts: dict[str, Any] = {
        "conversion": CONVERSION,
        "architecture": model.architecture,
        "kind": type(model.source).__name__,
        "source": model.source.model_dump(mode="json"),
        "trust_remote_code": model.trust_remote_code,
    }
    if isinstance(model.source, WheelSource | TwinSource):
        facts["transformers"] = version("transformers")
    if isinstance(model.source, TwinSource):
        facts["torch"] = version("torch")
        facts["code"] = [
            hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest()
            for name in ("twins.py", "shrink.py")
        ]
        facts["twin"] = repr(TWINS.get(model.source.twin))
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]
