"""What a model's memory depends on, as plain numbers: of a config, or of a name people know.

Importing this module imports no tensor library; :func:`of_config` does.
"""

from __future__ import annotations

import functools
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.classes import model_class, read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.checkpoints import Checkpoint
    from conformance.families import Dims
    from conformance.reference import Reference
    from conformance.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model.

    Attributes:
        parameters: how many numbers it learned, tied ones once, every expert of a mixture.
        layers: of an encoder and a decoder, those of both.
        heads: of queries.
        kv_heads: of keys and values, as stored.
        d_head: of queries and keys.
        d_mlp: width of the hidden layer, of all experts that a token chooses together.
        context: longest input, in tokens.
        window: longest sliding window, 0 for none.
        tied: whether the unembedding is the embedding.
        experts: how many of the parameters are a mixture's experts'.
        capped: whether logits have a soft cap.
    """

    parameters: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    context: int
    window: int = 0
    tied: bool = False
    experts: int = 0
    capped: bool = False

    @property
    def embedding(self) -> int:
        """Numbers in the table of tokens."""
        return self.d_vocab * self.d_model

    @property
    def blocks(self) -> int:
        """Numbers in everything but the tables of tokens."""
        return self.parameters - self.embedding * (1 if self.tied else 2)

    @property
    def long(self) -> int:
        """Tokens of the longest prompt, as :func:`conformance.prompts.long_length` has it."""
        from conformance.prompts import LONG

        return min(self.context, max(LONG, self.window + self.window // 8))

    @property
    def large(self) -> bool:
        """Whether checks cover a few layers only (:class:`conformance.experiments.base.Scope`)."""
        from conformance.experiments.base import LARGE

        return 12 * self.layers * self.d_model**2 + self.embedding > LARGE


def of_config(config: Any, architecture: str) -> Shape:
    """A HuggingFace config's, its parameters counted on the meta device: no weight is made.

    Raises:
        FamilyError: no family describes such a config.
    """
    import torch

    from conformance.families import dims
    from conformance.implementations.huggingface import HEADLESS

    whole = model_class(HEADLESS.get(architecture, architecture))
    with torch.device("meta"):
        model = whole._from_config(config)
    text = config.get_text_config()
    tied = bool(getattr(text, "tie_word_embeddings", getattr(config, "tie_word_embeddings", False)))
    counts = {name: p.numel() for name, p in model.named_parameters()}
    return of_dims(dims(config), counts, config, tied)


def of_checkpoint(checkpoint: Checkpoint, model: ModelSpec) -> Shape:
    """Of a checkpoint, from its config alone."""
    return of_directory(checkpoint.path, model.architecture, model.trust_remote_code)


def of_directory(path: Path, architecture: str, trust_remote_code: bool = False) -> Shape:
    """Of a directory that ``save_pretrained`` wrote, from its config alone."""

    config = read_config(path, trust_remote_code=trust_remote_code)
    return of_config(config, architecture)


def of_twin(name: str, changes: Mapping[str, Any] | None = None) -> Shape:
    """Of a twin that need not have been built."""
    from conformance.checkpoints.shrink import shrink
    from conformance.checkpoints.twin_catalogue import TWINS

    twin = TWINS[name]
    config = shrink(twin.model_type, {**twin.config, **(changes or {})})
    return of_config(config, twin.architecture)


def of_reference(reference: Reference) -> Shape:
    """Of a model whose trace holds the shape of every parameter."""
    trace, name = reference.trace, "parameter:"
    counts = {key: math.prod(trace.shape(key)) for key in trace if key.startswith(name)}
    return of_dims(reference.dims, counts, reference.config, reference.tied_unembed)


def of_dims(d: Dims, counts: Mapping[str, int], config: Any, tied: bool) -> Shape:
    """Of sizes that were read already.

    Args:
        counts: parameter -> how many numbers it has, tied ones once.
        config: HuggingFace's, for the width of the hidden layer.
    """
    return Shape(
        parameters=sum(counts.values()),
        experts=sum(count for name, count in counts.items() if ".experts." in name),
        layers=d.n_layers,
        d_model=d.d_model,
        heads=d.n_heads,
        kv_heads=d.n_kv_heads,
        d_head=d.d_head,
        d_mlp=_d_mlp(config.get_text_config(), d.d_model),
        d_vocab=d.d_vocab,
        context=d.n_ctx,
        window=max((w for w in d.windows if w is not None), default=0),
        tied=tied,
        capped=getattr(config.get_text_config(), "final_logit_softcapping", None) is not None,
    )


#: What configs call the width of the hidden layer, and how many experts a token chooses.
_WIDTHS = (
    "moe_intermediate_size",
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "d_ff",
    "ffn_hidden_size",
)
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "experts_per_token", "top_k_experts")


def _d_mlp(config: Any, d_model: int) -> int:
    widths = (getattr(config, name, None) for name in _WIDTHS)
    width = next((w for w in widths if isinstance(w, int) and w > 0), 4 * d_model)
    chosen = (getattr(config, name, None) for name in _CHOSEN)
    return width * next((n for n in chosen if isinstance(n, int) and n > 0), 1)


@functools.cache
def _named() -> Mapping[str, Mapping[str, Any]]:
    path = Path(__file__).with_name("shapes.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))["shape"]


def of_name(hub: str) -> Shape | None:
    """Of a model on the hub, as published; None where it is not known here."""
    found = _named().get(hub)
    return None if found is None else Shape(**{"d_mlp": 0, **found})  # attention only: none


def of_weights(sha256: str) -> Shape | None:
    """Of the embedded defaults' weights, by the digest of their file; None where unknown."""
    path = Path(__file__).with_name("embedded.toml")
    found = tomllib.loads(path.read_text(encoding="utf-8"))["weights"].get(sha256)
    return None if found is None else Shape(**found)
