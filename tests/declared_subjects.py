"""Subjects as a user declares them: functions that load a checkpoint, well or badly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

#: The hook that :func:`silent` and :func:`twice` tamper with.
HOOK = "blocks.1.attn.hook_z"


def good(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(checkpoint), dtype=dtype, device=device)


def good_in_train_mode(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    return good(checkpoint, dtype=dtype, device=device).train()


def raises(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    raise KeyError("rope_scaling")


def something_else(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)


def nothing(checkpoint: Path, *, dtype: torch.dtype, device: str) -> None:
    return None


def _with_hooks(model: Any, change: Callable[[list[Any]], list[Any]]) -> Any:
    run = model.run_with_hooks

    def run_with_hooks(*args: Any, fwd_hooks: list[Any], **kwargs: Any) -> Any:
        return run(*args, fwd_hooks=change(fwd_hooks), **kwargs)

    object.__setattr__(model, "run_with_hooks", run_with_hooks)
    return model


def silent(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port one of whose hooks never fires."""
    model = good(checkpoint, dtype=dtype, device=device)
    return _with_hooks(model, lambda hooks: [h for h in hooks if h[0] != HOOK])


def twice(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port one of whose hooks fires twice."""
    model = good(checkpoint, dtype=dtype, device=device)
    return _with_hooks(model, lambda hooks: hooks + [h for h in hooks if h[0] == HOOK])


def breaks_in_forward(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    model = good(checkpoint, dtype=dtype, device=device)

    def fail(*_: Any) -> None:
        raise RuntimeError("size mismatch")

    model.blocks[1].register_forward_pre_hook(fail)
    return model


def scribbles(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port whose loading changes transformers for the whole process."""
    from transformers.models.llama import modeling_llama

    def wrong(self: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    modeling_llama.LlamaRMSNorm.forward = wrong
    return good(checkpoint, dtype=dtype, device=device)
