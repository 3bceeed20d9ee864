"""Writes a standalone script that shows a divergence: for a bug report, with nothing of ours.

The script imports torch, transformers and transformer_lens (and a user's own loader). It makes or
loads a checkpoint, runs both sides on a few tokens, compares site after site and exits with 1
where they differ. How it reads HuggingFace's side comes from the same descriptions in
``conformance/families`` that the harness uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.explain.script.cases import INSIDE, Case, Port, Source
from conformance.explain.script.checkpoint import build_part
from conformance.explain.script.comparison import difference_part, float64_part, main_part
from conformance.explain.script.port_side import port_part
from conformance.explain.script.reference_side import reference_part
from conformance.explain.script.tables import constants_part
from conformance.sites import parse

if TYPE_CHECKING:
    from conformance.families import Dims, Family

__all__ = ["INSIDE", "Case", "Port", "Source", "write"]


def write(source: Source, port: Port, case: Case, fam: Family, d: Dims) -> str:
    """The script's text."""
    inside = parse(case.site).kind in INSIDE
    exact = case.exact or case.dtype is not None
    parts = [
        constants_part(source, port, case, fam, d, inside),
        float64_part() if exact else "",
        build_part(source),
        reference_part(case, fam, inside),
        port_part(port, case),
        difference_part(),
        main_part(case, port, exact),
    ]
    body = "\n\n\n".join(part.strip("\n") for part in parts if part)
    head = f'"""{case.title}\n\nExit status: 1 the difference is there, 0 it is not.\n"""'
    return f"{head}\n\n{_imports(port, body)}\n\n{body}\n"


def _imports(port: Port, body: str) -> str:
    """What the body uses."""
    standard = {
        "import contextlib": "contextlib.",
        "import inspect": "inspect.",
        "import json": "json.",
        "import tempfile": "tempfile.",
        "from importlib.metadata import version": "version(",
        "from pathlib import Path": "Path(",
    }
    lines = ["from __future__ import annotations", ""]
    lines += [line for line, use in standard.items() if use in body]
    lines += ["", "import torch", "import transformers"]
    if "TorchFunctionMode" in body:
        lines.append("from torch.overrides import TorchFunctionMode")
    if port.kind == "bridge":
        lines.append("from transformer_lens.model_bridge import TransformerBridge")
    elif port.kind == "hooked":
        lines.append("from transformer_lens import HookedTransformer, loading_from_pretrained")
    else:
        assert port.loader is not None
        module, _, name = port.loader.partition(":")
        lines.insert(2, "import sys")
        # A script's own folder is on the path, and not that from which it is called.
        lines += ["", 'sys.path.append(".")  # run from where the loader can be imported']
        lines.append(f"from {module} import {name} as load_subject")
    return "\n".join(lines)
