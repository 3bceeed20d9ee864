"""Has TransformerLens load a checkpoint of its own format, as it was published, offline.

Both generations know such models by official name only and ask the hub for their two files. Here
the files come from a throw-away directory; what is done with them is TransformerLens's own code.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from conformance.classes import read_config
from conformance.errors import NotApplicable
from conformance.native import published
from conformance.precision import as_stored

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Layout -> a name that TransformerLens loads so.
NAMES = {
    "neel": "NeelNanda/Attn_Only_2L512W_C4_Code",
    "neel-solu-old": "NeelNanda/SoLU_2L_v10_old",
    "mingpt": "Baidicoot/Othello-GPT-Transformer-Lens",
}


def official_name(checkpoint: Path) -> str:
    """A name under which TransformerLens expects such files."""
    return NAMES[read_config(checkpoint).layout]


@contextlib.contextmanager
def served(checkpoint: Path) -> Iterator[None]:
    """Inside, the hub has what was published of this checkpoint, whatever is asked for."""
    import huggingface_hub

    load = torch.load

    def loaded(*args: Any, **kwargs: Any) -> Any:
        with as_stored():
            return load(*args, **kwargs)

    with tempfile.TemporaryDirectory(prefix="conformance-hub-") as folder:
        with as_stored():
            published.write(checkpoint, read_config(checkpoint), Path(folder))

        def download(repo_id: str, filename: str, *_: Any, **__: Any) -> str:
            return str(Path(folder) / filename)

        def files(*_: Any, **__: Any) -> list[str]:
            return [published.CONFIG, published.WEIGHTS]

        with contextlib.ExitStack() as stack:
            for owner in _downloaders():
                stack.enter_context(mock.patch.object(owner, "hf_hub_download", download))
            stack.enter_context(mock.patch.object(torch, "load", loaded))
            stack.enter_context(mock.patch.object(huggingface_hub.HfApi, "list_repo_files", files))
            yield


def _downloaders() -> list[Any]:
    """The modules through which TransformerLens downloads a file."""
    import huggingface_hub
    from transformer_lens.utilities import hf_utils

    return [huggingface_hub, hf_utils]


def load_bridge(checkpoint: Path, dtype: torch.dtype, tokenizer: Any, name: str | None) -> Any:
    """A TransformerBridge of the checkpoint.

    Args:
        name: the official name; None for one that has its layout.

    Raises:
        NotApplicable: the installed TransformerLens's bridge loads no such models, or not these.
    """
    from transformer_lens.model_bridge import TransformerBridge

    boot = getattr(TransformerBridge, "boot_tl_legacy", None)
    if boot is None:
        raise NotApplicable(
            "the installed TransformerBridge does not load TransformerLens's own format",
            "use the hooked subject, or TransformerLens 4",
        )
    with served(checkpoint):
        try:
            return boot(
                name or official_name(checkpoint), dtype=dtype, device="cpu", tokenizer=tokenizer
            )
        except NotImplementedError as error:
            raise NotApplicable(
                f"TransformerBridge declines: {error}", "use the hooked subject"
            ) from error
