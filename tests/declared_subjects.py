"""Subjects as a user declares them: functions that load a checkpoint, well or badly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def silent(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port one of whose hooks never fires."""
    model = good(checkpoint, dtype=dtype, device=device)
    model.hook_dict[HOOK]._call_impl = lambda tensor: tensor
    return model


def twice(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port one of whose hooks fires twice."""
    model = good(checkpoint, dtype=dtype, device=device)
    point = model.hook_dict[HOOK]
    once = point._call_impl
    point._call_impl = lambda tensor: once(once(tensor))
    return model


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


def _as_if(checkpoint: Path, dtype: torch.dtype, device: str, **config: Any) -> Any:
    """A port that takes the checkpoint's config to say something else."""
    import json
    import shutil
    import tempfile
    from pathlib import Path as Folder

    with tempfile.TemporaryDirectory() as folder:
        copy = Folder(shutil.copytree(checkpoint, Folder(folder) / "copy"))
        file = copy / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return good(copy, dtype=dtype, device=device)


def without_attention_bias(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port that drops the biases of attention."""
    return _as_if(checkpoint, dtype, device, attention_bias=False)


def with_plain_positions(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port that takes scaled rotary positions for plain ones."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    return _as_if(checkpoint, dtype, device, rope_parameters=plain)


def other_loss(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port of an encoder and a decoder whose loss is 1 % off."""
    model = good(checkpoint, dtype=dtype, device=device)
    right = model._seq2seq_loss
    model._seq2seq_loss = lambda *args, **options: 1.01 * right(*args, **options)
    return model


def detached(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port of an encoder and a decoder whose encoder no gradient reaches."""
    model = good(checkpoint, dtype=dtype, device=device)
    last = model.encoder_blocks[-1].original_component

    def cut(_: Any, __: Any, output: Any) -> Any:
        return (
            output.detach() if not isinstance(output, tuple) else (output[0].detach(), *output[1:])
        )

    last.register_forward_hook(cut)
    return model


def silent_in_a_decoder(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port of an encoder and a decoder one of whose hooks never fires."""
    model = good(checkpoint, dtype=dtype, device=device)
    model.hook_dict["decoder_blocks.0.self_attn.hook_z"]._call_impl = lambda tensor: tensor
    return model


def rows_mixed(checkpoint: Path, *, dtype: torch.dtype, device: str) -> Any:
    """A port that adds a trace of the batch's first row to the others."""
    model = good(checkpoint, dtype=dtype, device=device)

    def mix(_: Any, __: Any, output: Any) -> Any:
        output.logits = output.logits + 1e-6 * output.logits[:1]
        return output

    model.original_model.register_forward_hook(mix)
    return model
