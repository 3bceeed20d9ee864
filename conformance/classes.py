"""Configs and model classes by name: those of transformers, and ours where it has none."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from conformance.native import ARCHITECTURE

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def _register() -> None:
    """Make our config class known to transformers, once a process."""
    import transformers

    from conformance.native.config import NativeConfig

    transformers.AutoConfig.register(NativeConfig.model_type, NativeConfig)


def read_config(checkpoint: Path, **options: Any) -> Any:
    """The config of a checkpoint's directory.

    Args:
        options: of ``AutoConfig.from_pretrained``.
    """
    import transformers

    _register()
    return transformers.AutoConfig.from_pretrained(checkpoint, **options)


def config_of_type(model_type: str, **arguments: Any) -> Any:
    """A config made with these arguments of the class with this ``model_type``."""
    import transformers

    _register()
    return transformers.AutoConfig.for_model(model_type, **arguments)


def model_class(architecture: str) -> Any:
    """The class of that name; None where transformers has none, nor we."""
    import transformers

    if architecture == ARCHITECTURE:
        _register()
        from conformance.native.model import TransformerLensNative

        return TransformerLensNative
    return getattr(transformers, architecture, None)
