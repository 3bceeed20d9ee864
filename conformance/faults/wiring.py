"""Faults of what stands between components: residual stream, embedding, positions, head."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.base import Fault, at, exactly
from conformance.faults.inject import (
    attention,
    attribute,
    block,
    called_with,
    edited,
    editing,
    exposed,
    original,
    overwritten,
    replaced_by,
    returning,
    watched,
)
from conformance.faults.norms import has_norm, matters, norm, norm_weight
from conformance.implementations.base import replace_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.implementations.lens_model import LensModel

_LAYER = 1
_PRE = f"blocks.{_LAYER}"


@contextlib.contextmanager
def _layers_swapped(subject: LensModel) -> Iterator[None]:
    """The weights of two layers change places."""
    first, second = block(subject, 1), block(subject, 2)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    with contextlib.ExitStack() as stack:
        for a, b in pairs:
            one, two = replaced_by(a), replaced_by(b)
            stack.enter_context(overwritten(a, two))
            stack.enter_context(overwritten(b, one))
        yield


def _first_weights(subject: LensModel) -> tuple[str, ...]:
    """Where a layer first uses a weight of its own: OLMo's norms have none."""
    first = norm(subject, f"{_PRE}.ln1")
    bare = first is None or not matters(norm_weight(first), 1.0)
    after = bare or subject.family.post_norm
    return at("attn.q")(subject) if after else at("ln1", "attn.q")(subject)


def _mixer_out(subject: LensModel) -> tuple[str, ...]:
    """The output of the first mixer after the first layer; of the first if there is no other.

    None where the port shows none.
    """
    layers = range(subject.dims.n_layers)
    sites = [f"blocks.{i}.mixer_out" for i in layers if subject.family.of(i).mixer is not None]
    found = [site for site in sites if exposed(subject, site)]
    return tuple(found[1:] or found)[:1]


def _can_swap(subject: LensModel) -> bool:
    first, second = block(subject, 1), block(subject, 2)
    shapes = [[p.shape for p in b.parameters()] for b in (first, second)]
    return shapes[0] == shapes[1] and len(shapes[0]) > 0


@contextlib.contextmanager
def _parallel(subject: LensModel) -> Iterator[None]:
    """The MLP's branch reads the stream before attention."""
    module = norm(subject, f"{_PRE}.ln2")
    assert module is not None
    with watched(subject, f"{_PRE}.resid_pre") as box:

        def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return replace_input(args, kwargs, box.get())

        with called_with(module, change):
            yield


@contextlib.contextmanager
def _sequential(subject: LensModel) -> Iterator[None]:
    """The MLP of a parallel block also reads what attention wrote."""
    with watched(subject, f"{_PRE}.attn_out") as box:
        module = subject.components()[f"{_PRE}.mlp"]

        def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            own = args[0] if args else kwargs["hidden_states"]
            return replace_input(args, kwargs, own + box.get().reshape(own.shape))

        with called_with(module, change):
            yield


@contextlib.contextmanager
def _streamed(subject: LensModel, part: float) -> Iterator[None]:
    """The residual stream enters the sum of a block's end with another weight."""
    with (
        watched(subject, f"{_PRE}.resid_pre") as box,
        edited(subject, f"{_PRE}.resid_post", lambda t: t - (1 - part) * box.get()),
    ):
        yield


def final(subject: LensModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Change what the unembedding returns."""
    return returning(subject.components()["unembed"], change)


def headed(subject: LensModel) -> bool:
    """Whether the model has a head."""
    return subject.family.unembed is not None


def _softcap_owner(subject: LensModel) -> tuple[Any, str] | None:
    """Where this port keeps the cap of its logits."""
    hf = getattr(subject.model, "original_model", None)
    config = getattr(hf, "config", None)
    if config is not None and getattr(config, "final_logit_softcapping", None):
        return config, "final_logit_softcapping"
    if hf is None and (getattr(subject.model.cfg, "output_logits_soft_cap", None) or -1) > 0:
        return subject.model.cfg, "output_logits_soft_cap"
    return None


def _final_cap(subject: LensModel, factor: float | None) -> Any:
    found = _softcap_owner(subject)
    assert found is not None
    owner, name = found
    none = None if name == "final_logit_softcapping" else -1.0
    return attribute(owner, name, none if factor is None else getattr(owner, name) * factor)


@contextlib.contextmanager
def _untied(subject: LensModel) -> Iterator[None]:
    """The head keeps weights of its own where the checkpoint ties it to the embedding."""
    module = original(subject.components()["unembed"])
    name = "W_U" if hasattr(module, "W_U") else "weight"
    own = getattr(module, name)
    other = torch.nn.Parameter(own.detach() * (1 + 1e-3), requires_grad=own.requires_grad)
    with attribute(module, name, other):
        yield


def _tied(subject: LensModel) -> bool:
    if not headed(subject):
        return False
    head = original(subject.components()["unembed"])
    table = original(getattr(subject.model, "embed", None))
    return getattr(head, "weight", None) is getattr(table, "weight", object())


def _absolute(subject: LensModel) -> torch.Tensor:
    """The position table from position 0 on, [pos, d_model]."""
    module = original(subject.model.pos_embed)
    names = ("W_pos", "weight", "weights")  # sinusoids of M2M100 are a buffer
    table: torch.Tensor = next(getattr(module, n) for n in names if hasattr(module, n))
    return table.detach()[-min(table.shape[0], subject.dims.n_ctx) :]


def _positions_late(subject: LensModel) -> Any:
    """Each token gets the position before its own."""
    return edited(
        subject, "pos_embed", lambda t: torch.cat([t[..., :1, :], t[..., :-1, :]], dim=-2)
    )


def _positions_count_padding(subject: LensModel) -> Any:
    table = _absolute(subject)
    return edited(
        subject, "pos_embed", lambda t: table[: t.shape[-2]].to(t.dtype).expand(t.shape).clone()
    )


def _learned(subject: LensModel) -> bool:
    shown = exposed(subject, "pos_embed") and hasattr(subject.model, "pos_embed")
    return subject.family.pos_embed is not None and shown


def _padding_uncounted(subject: LensModel) -> bool:
    """Whether positions leave padding out: those of BERT and BART count it."""
    fam = subject.family
    return _learned(subject) and (fam.own_positions or (fam.causal and not fam.encoder))


def _skipped_rows(subject: LensModel) -> int:
    """How many rows before position 0 this port's position table keeps (OPT: 2)."""
    offset = subject.family.pos_offset
    if not _learned(subject) or not offset:
        return 0
    return offset if getattr(original(subject.model.pos_embed), "offset", 0) == offset else 0


def _rows_not_skipped(subject: LensModel) -> Any:
    """Each token gets the row of its position, counted from the table's first."""
    table: torch.Tensor = original(subject.model.pos_embed).weight.detach()
    by = _skipped_rows(subject)

    def change(t: torch.Tensor) -> torch.Tensor:
        rows = (t[..., None, :] == table).all(-1).int().argmax(-1)
        return table[(rows - by).clamp_min(0)]

    return edited(subject, "pos_embed", change)


def _positions_to_values(subject: LensModel) -> Any:
    """Values are made of what queries are: positions and all."""
    return called_with(
        attention(subject, _LAYER),
        lambda args, kwargs: (args, {**kwargs, "value_input": kwargs["query_input"]}),
    )


def _shortformer(subject: LensModel) -> bool:
    return subject.family.shortformer


def _hf(subject: LensModel) -> Any | None:
    """The HuggingFace model in a bridge."""
    return getattr(subject.model, "original_model", None)


def _scaled_block(subject: LensModel) -> Any | None:
    found = original(block(subject, _LAYER))
    return found if getattr(found, "residual_multiplier", 1.0) != 1.0 else None


def _scaled_embedding(subject: LensModel) -> Any | None:
    inner = getattr(_hf(subject), "model", None)
    return inner if getattr(inner, "embedding_multiplier", 1.0) != 1.0 else None


def _logit_scale(subject: LensModel) -> tuple[Any, str] | None:
    """Where this port keeps what its logits are multiplied or divided by."""
    model = _hf(subject)
    for owner, name in (
        (model, "logit_scale"),
        (getattr(model, "config", None), "logits_scaling"),
    ):
        if getattr(owner, name, 1.0) != 1.0:
            return owner, name
    return None


def _unscaled_logits(subject: LensModel) -> Any:
    found = _logit_scale(subject)
    assert found is not None
    return attribute(*found, 1.0)


def _rounded(d_model: int) -> float:
    """What rounding sqrt(d_model) to eight bits multiplies it by."""
    root = d_model**0.5
    unit = 2.0 ** (math.floor(math.log2(root)) - 7)
    return round(root / unit) * unit / root


FAULTS: tuple[Fault, ...] = (
    Fault(
        "layers_swapped",
        "wiring",
        "two layers' weights swapped",
        _layers_swapped,
        _first_weights,
        lambda s: s.dims.n_layers > 2 and _can_swap(s),
    ),
    Fault(
        "parallel_for_sequential",
        "wiring",
        "attention and MLP read the same stream",
        _parallel,
        lambda s: (
            f"{_PRE}.resid_mid",
            *([f"{_PRE}.resid_cross"] if s.family.of(_LAYER).cross else []),
            f"{_PRE}.ln2",
        ),
        lambda s: not s.family.of(_LAYER).parallel and has_norm(f"{_PRE}.ln2")(s),
    ),
    Fault(
        "sequential_for_parallel",
        "wiring",
        "the MLP reads attention's output too",
        _sequential,
        at("mlp.pre"),
        lambda s: s.family.of(_LAYER).parallel and exposed(s, f"{_PRE}.attn_out"),
    ),
    Fault(
        "residual_scaled",
        "wiring",
        "the stream enters a block's sum with weight 0.99",
        lambda s: _streamed(s, 0.99),
        at("resid_post"),
    ),
    Fault(
        "mixer_out_scaled",
        "wiring",
        "the contribution of a state-space model, or of its like, is scaled by 1.01",
        lambda s: edited(s, _mixer_out(s)[0], lambda t: t * 1.01),
        _mixer_out,
        lambda s: bool(_mixer_out(s)),
    ),
    Fault(
        "attn_out_scaled",
        "wiring",
        "attention's contribution is scaled by 1.01",
        editing(f"blocks.{_LAYER}.attn_out", lambda t: t * 1.01),
        at("attn_out"),
    ),
    Fault(
        "mlp_out_scaled",
        "wiring",
        "the MLP's contribution is scaled by 0.999",
        editing(f"blocks.{_LAYER}.mlp_out", lambda t: t * 0.999),
        at("mlp_out"),
        lambda s: exposed(s, f"{_PRE}.mlp_out"),
    ),
    Fault(
        "embed_scale_missing",
        "wiring",
        "the embedding is not scaled by sqrt(d_model)",
        lambda s: edited(s, "embed", lambda t: t / s.dims.d_model**0.5),
        exactly("embed"),
        lambda s: s.family.embed_scaled,
    ),
    Fault(
        "embed_scale_rounded",
        "wiring",
        "sqrt(d_model) rounded to bfloat16",
        lambda s: edited(s, "embed", lambda t: t * _rounded(s.dims.d_model)),
        exactly("embed"),
        lambda s: s.family.embed_scaled,
    ),
    Fault(
        "logits_scaled",
        "wiring",
        "logits scaled by 1.02",
        lambda s: final(s, lambda t: t * 1.02),
        exactly("logits"),
        headed,
        named_by="logits",
    ),
    Fault(
        "final_softcap_missing",
        "softcap",
        "logits are not capped",
        lambda s: _final_cap(s, None),
        exactly("logits"),
        lambda s: _softcap_owner(s) is not None,
        named_by="logits",
    ),
    Fault(
        "final_softcap_off",
        "softcap",
        "logits capped at 30.5 instead of 30",
        lambda s: _final_cap(s, 30.5 / 30),
        exactly("logits"),
        lambda s: _softcap_owner(s) is not None,
        named_by="logits",
    ),
    Fault(
        "head_untied",
        "wiring",
        "a tied head has drifted from the embedding by 0.1 %",
        _untied,
        exactly("logits"),
        _tied,
        named_by="logits",
    ),
    Fault(
        "positions_late",
        "positions",
        "learned positions off by one",
        _positions_late,
        exactly("pos_embed"),
        _learned,
    ),
    Fault(
        "positions_count_padding",
        "positions",
        "learned positions count padding",
        _positions_count_padding,
        exactly("pos_embed"),
        _padding_uncounted,
    ),
    Fault(
        "shortformer_positions_in_stream",
        "positions",
        "positions are added to the stream, and to no queries and keys",
        lambda s: attribute(s.model.cfg, "positional_embedding_type", "standard"),
        exactly("blocks.0.resid_pre"),
        _shortformer,
    ),
    Fault(
        "shortformer_positions_in_values",
        "positions",
        "positions are added to what values are made of, too",
        _positions_to_values,
        at("attn.v"),
        _shortformer,
    ),
    Fault(
        "position_offset_missing",
        "positions",
        "the rows before position 0 are not skipped",
        _rows_not_skipped,
        exactly("pos_embed"),
        lambda s: _skipped_rows(s) > 0,
    ),
    Fault(
        "residual_multiplier_missing",
        "wiring",
        "a block's branches enter the stream unscaled",
        lambda s: attribute(_scaled_block(s), "residual_multiplier", 1.0),
        exactly(f"{_PRE}.resid_mid"),
        lambda s: _scaled_block(s) is not None,
    ),
    Fault(
        "embed_multiplier_missing",
        "wiring",
        "the embedding enters the stream unscaled",
        lambda s: attribute(_scaled_embedding(s), "embedding_multiplier", 1.0),
        exactly("blocks.0.resid_pre"),
        lambda s: _scaled_embedding(s) is not None,
    ),
    Fault(
        "logit_scale_missing",
        "wiring",
        "logits are not scaled by what the config says",
        _unscaled_logits,
        exactly("logits"),
        lambda s: _logit_scale(s) is not None,
        named_by="logits",
    ),
)
