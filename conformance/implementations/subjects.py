"""The subjects: TransformerLens models, loaded from the checkpoint that the reference has."""

from __future__ import annotations

import contextlib
import functools
import importlib
import subprocess
from typing import TYPE_CHECKING, Any

from conformance.errors import ImplementationError, NotApplicable
from conformance.implementations.bridge import BridgeModel
from conformance.implementations.hooked_transformer import HookedModel
from conformance.native import ARCHITECTURE
from conformance.precision import promoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from conformance.families import Dims, Family
    from conformance.implementations.lens_model import LensModel


def load_subject(
    name: str,
    checkpoint: Path,
    fam: Family,
    d: Dims,
    dtype: torch.dtype,
    *,
    loader: str | None = None,
    hooked_name: str | None = None,
    trust_remote_code: bool = False,
) -> LensModel:
    """Load a subject from a checkpoint directory, on the CPU.

    Args:
        name: ``bridge``, ``hooked``, or a name declared in ``models.toml`` (then ``loader``).
        loader: ``package.module:function``, called as ``function(checkpoint_dir, dtype=...,
            device=...)``.

    Raises:
        NotApplicable: the installed TransformerLens has no such subject.
        ImplementationError: loading failed; that is the port's failure.
    """
    with promoted(dtype), _nothing_installed():
        if loader is not None:
            return _wrap(_declared(loader, checkpoint, dtype), name, fam, d, dtype)
        if name == "hooked":
            from conformance.implementations.hooked import load_hooked

            load = functools.partial(
                load_hooked,
                checkpoint,
                architecture=fam.architecture,
                dtype=dtype,
                official_name=hooked_name,
            )
            subject = _wrap(load(), name, fam, d, dtype)
            assert isinstance(subject, HookedModel)
            subject.load_processed = functools.partial(load, processed=True)
            return subject
        if name == "bridge":
            if fam.architecture == ARCHITECTURE:
                return _wrap(_own_format(checkpoint, dtype, hooked_name), name, fam, d, dtype)
            return _wrap(_bridge(checkpoint, dtype, trust_remote_code), name, fam, d, dtype)
    raise ImplementationError(
        f"no subject named {name!r}",
        f'declare it in models.toml: [subjects.{name}] loader = "package.module:function"',
    )


@contextlib.contextmanager
def _nothing_installed() -> Iterator[None]:
    """Keep a port that loads from changing the environment it is judged in.

    TransformerBridge runs ``pip install torchvision`` where it finds no processor for a model
    that sees or hears (docs/findings/121-boot-installs-torchvision.md); it goes on without.
    """
    run = subprocess.check_call

    def refused(args: Any, *rest: Any, **kwargs: Any) -> int:
        if "install" in args:
            raise ImplementationError(
                f"a port wanted to run: {' '.join(map(str, args))}",
                "install it yourself, if the port needs it",
            )
        return run(args, *rest, **kwargs)

    subprocess.check_call = refused
    try:
        yield
    finally:
        subprocess.check_call = run


#: How TransformerLens begins to say that it knows no adapter for a config.
_NO_ADAPTER = "Could not determine supported architecture"


def _bridge(checkpoint: Path, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise NotApplicable(
            f"the installed TransformerLens has no TransformerBridge ({error})",
            "install transformer-lens 3.0 or later",
        ) from error
    try:
        return TransformerBridge.boot_transformers(
            str(checkpoint), dtype=dtype, device="cpu", trust_remote_code=trust_remote_code
        )
    except ValueError as error:
        if not str(error).startswith(_NO_ADAPTER):
            raise
        raise NotApplicable(
            "the installed TransformerLens has no adapter for this architecture",
            "`conformance coverage` lists what it supports",
        ) from error


def _own_format(checkpoint: Path, dtype: torch.dtype, official_name: str | None) -> Any:
    from conformance.implementations.hooked import tokenizer_of
    from conformance.native.loading import load_bridge

    return load_bridge(checkpoint, dtype, tokenizer_of(checkpoint), official_name)


def _declared(loader: str, checkpoint: Path, dtype: torch.dtype) -> Any:
    module_name, _, function_name = loader.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ImplementationError(
            f"the subject's loader {loader!r} cannot be imported: {error}",
            "is its package installed in this environment, or its folder on PYTHONPATH?",
        ) from error
    return function(checkpoint, dtype=dtype, device="cpu")


def _wrap(model: Any, name: str, fam: Family, d: Dims, dtype: torch.dtype) -> LensModel:
    mro = {cls.__name__ for cls in type(model).__mro__}
    for wrapper in (BridgeModel, HookedModel):
        if wrapper.kind in mro:
            model.eval()
            return wrapper(model, name, fam, d, dtype)
    raise ImplementationError(
        f"subject {name!r} is a {type(model).__name__}",
        "the loader must return a TransformerBridge or a HookedTransformer",
    )
