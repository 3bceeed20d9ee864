"""Loaders of declared subjects are found beside models.toml and in the current directory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from conformance.loaders import import_path
from conformance.spec import load_spec

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_what_is_installed_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, here = tmp_path / "models", tmp_path / "here"
    models.mkdir()
    here.mkdir()
    (models / "models.toml").write_text(
        'schema = 1\n[[model]]\nid = "a"\narchitecture = "LlamaForCausalLM"\n'
        'source = { twin = "llama" }\n'
    )
    spec = load_spec(models / "models.toml")
    assert import_path(spec, here) == [*sys.path, str(models), str(here)]
    monkeypatch.chdir(models)
    assert import_path(spec) == [*sys.path, str(models)]  # once, where they are the same
    monkeypatch.syspath_prepend(str(models))
    assert import_path(spec) == sys.path
