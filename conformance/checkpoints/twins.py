"""Builds a twin: the real HuggingFace class, shrunk, with seeded weights none of which is neutral.

HuggingFace's own initialisation (std 0.02, zero biases, unit norm weights) hides whole classes
of bugs: attention is nearly uniform, softcaps and activation variants are inactive, a missing
bias or norm offset changes nothing. Here norm weights stay away from 1, biases away from 0, and
matrices are large enough that attention is peaked and activations reach their curved parts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from conformance.checkpoints.twin_catalogue import TWINS
from conformance.classes import model_class
from conformance.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

#: Standard deviations: vectors (norm weights and biases, around their own initial value),
#: embedding tables, and matrices in units of 1/sqrt(fan). With unit-variance inputs a gain of
#: 1.5 gives query-key products of variance 5, whose softmax is far from uniform.
_VECTOR_STD = 0.3
_TABLE_STD = 0.8
_MATRIX_GAIN = 1.5
#: What models that read no tokens call their first argument.
CONTENT = ("pixel_values", "input_values")


def build_twin(name: str, seed: int, target: Path, config: Mapping[str, Any] | None = None) -> None:
    """Write twin ``name`` to directory ``target``: config, safetensors and a character tokenizer.

    Args:
        config: arguments of its config class that replace the twin's own.

    Raises:
        CheckpointError: no such twin.
    """
    twin = TWINS.get(name)
    if twin is None:
        raise CheckpointError(
            f"no twin named {name!r}", f"known: {', '.join(sorted(TWINS))} (twin_catalogue/)"
        )
    import torch

    from conformance.checkpoints.shrink import shrink

    small = shrink(twin.model_type, {**twin.config, **(config or {})})
    small.architectures = [twin.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(twin.architecture)._from_config(small, dtype=torch.float32)
    fill(model, seed, twin.gains)
    model.save_pretrained(target)
    if twin.reads_text and model.main_input_name not in CONTENT:
        save_tokenizer(target, small.get_text_config().vocab_size)


def fill(model: torch.nn.Module, seed: int, gains: Mapping[str, float] | None = None) -> None:
    """Draw every parameter, and every buffer that is stored, from ``seed``, in place.

    Args:
        gains: end of a parameter's or buffer's name -> a further factor of its standard deviation.
    """
    import torch

    from conformance.implementations.base import stored_buffers

    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            noise *= _gain(name, gains)
            if parameter.ndim == 1:
                parameter.add_(_VECTOR_STD * noise)
            elif id(parameter) in tables:
                parameter.copy_(_TABLE_STD * noise)
            else:
                parameter.copy_(_MATRIX_GAIN / math.sqrt(min(parameter.shape[-2:])) * noise)
        for name, buffer in stored_buffers(model).items():
            noise = torch.randn(buffer.shape, generator=generator)
            buffer.add_(_VECTOR_STD * _gain(name, gains) * noise)


def _gain(name: str, gains: Mapping[str, float] | None) -> float:
    return math.prod(gain for end, gain in (gains or {}).items() if name.endswith(end))


def save_tokenizer(target: Path, vocab_size: int) -> None:
    """One token per printable ASCII character, after four special ones.

    Byte-level, as transformers has it for most models: some model types (``qwen2``) are always
    given their own tokenizer class, which would read any other alphabet wrongly.
    """
    import string

    import tokenizers
    import transformers

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    printable = [level.pre_tokenize_str(character)[0][0] for character in string.printable]
    vocabulary = {c: i for i, c in enumerate([*special, *printable][:vocab_size])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = level
    inner.decoder = tokenizers.decoders.ByteLevel()
    names: dict[str, Any] = dict(
        zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True)
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.save_pretrained(target)
