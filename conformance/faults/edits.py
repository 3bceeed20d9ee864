"""Faults that show only where somebody edits: a forward pass without edits is right.

Each breaks how one hook point treats what a user's hook returns.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from conformance.faults.base import Fault, exactly
from conformance.faults.inject import Box, acts, attribute, edited, forks, point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from conformance.implementations.lens_model import LensModel

    #: What the model goes on with, given the value and what the user's hook made of it.
    Treatment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_LAYER = 1


@contextlib.contextmanager
def treated(subject: LensModel, site: str, treatment: Treatment) -> Iterator[None]:
    """A hook point that makes something else of what a hook returns; looking is as it was."""
    module: Any = point(subject, site)
    right = module.add_hook

    def wrong(user: Any, *args: Any, **kwargs: Any) -> Any:
        def hook(tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
            given = tensor.clone()
            result = user(given, hook=hook)
            return None if result is None else treatment(tensor, result)

        return right(hook, *args, **kwargs)

    with attribute(module, "add_hook", wrong):
        yield


def _editable(site: str) -> Callable[[LensModel], bool]:
    return lambda s: acts(s, site)


def _fault(name: str, what: str, kind: str, treatment: Treatment, needs: str) -> Fault:
    site = f"blocks.{_LAYER}.{kind}"
    return Fault(
        name,
        "behaviour",
        what,
        lambda s: treated(s, site, treatment),
        exactly(site),
        _editable(site),
        needs=needs,
    )


def _dropped(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return before


def _first_position(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    result = before.clone()
    result[:, 0] = after[:, 0]
    return result


def _first_row(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    result = before.clone()
    result[0] = after[0]
    return result


def _twice(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return after + (after - before)


def _first_head(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    result = before.clone()
    result[:, :, 0] = after[:, :, 0]
    return result


def _rounded(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return after * (1 + 2.0**-48)


def _backwards(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return after + 1e-3 * (after - before).roll(-1, 1)


def _next_head(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return before + (after - before).roll(1, 2)


@contextlib.contextmanager
def _cache_changed(subject: LensModel) -> Iterator[None]:
    """What a cache keeps of the queries is a part in a million too large."""
    model = subject.model
    right = model.run_with_cache
    name = subject.expected_hooks()[0][f"blocks.{_LAYER}.attn.q"]

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result, cache = right(*args, **kwargs)
        cache.cache_dict[name] = cache.cache_dict[name] * (1 + 1e-6)
        return result, cache

    with attribute(model, "run_with_cache", wrong):
        yield


@contextlib.contextmanager
def _sweep_shifted() -> Iterator[None]:
    """A sweep returns its results one patch late."""
    from transformer_lens import patching

    right = patching.get_act_patch_resid_pre

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return right(*args, **kwargs).roll(1, 0)

    wrong.keywords = right.keywords  # type: ignore[attr-defined]
    with attribute(patching, "get_act_patch_resid_pre", wrong):
        yield


@contextlib.contextmanager
def _stack_swapped() -> Iterator[None]:
    """A stack of sweeps has keys where its queries belong, and queries where its keys do."""
    from transformer_lens import patching

    name = "get_act_patch_attn_head_all_pos_every"
    right = getattr(patching, name)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return right(*args, **kwargs)[[0, 2, 1, 3, 4]]

    with attribute(patching, name, wrong):
        yield


@contextlib.contextmanager
def _path_into_other_head() -> Iterator[None]:
    """A direct path ends in the head before the one that was asked for."""
    from transformer_lens import patching

    right = patching._make_direct_path_hook

    def wrong(delta: torch.Tensor, head: int, fired: list[bool]) -> Any:
        return right(delta, head - 1, fired)

    with attribute(patching, "_make_direct_path_hook", wrong):
        yield


@contextlib.contextmanager
def _target_ignored(subject: LensModel) -> Iterator[None]:
    """A decoder is given the encoder's tokens, whatever a call says."""
    model = subject.model
    right = model.forward

    def wrong(*args: Any, decoder_input_ids: Any = None, **kwargs: Any) -> Any:
        return right(*args, **kwargs)

    with attribute(model, "forward", wrong):
        yield


def _crossing(subject: LensModel) -> str:
    return f"blocks.{subject.family.encoder}.cross_attn.z"


def _swept(subject: LensModel) -> bool:
    """Whether the library's sweeps know the model's blocks: they name one stack."""
    return not subject.family.encoder


_STACKED = ("attn.z", "attn.q", "attn.k", "attn.v", "attn.pattern")


def _stacks(subject: LensModel) -> bool:
    return _swept(subject) and all(_editable(f"blocks.0.{kind}")(subject) for kind in _STACKED)


def _keeps_scale(subject: LensModel) -> bool:
    """Whether a factor of one head's queries is seen: a norm of each head takes it out again, to
    all but a comparison bit for bit, as of stacks of sweeps."""
    fam = subject.family
    stacked = all(fam.everywhere(kind) for kind in _STACKED)
    return fam.everywhere("attn.q") and (fam.qk_norm in (None, "full") or stacked)


def _has_paths(subject: LensModel) -> bool:
    """Whether the library can patch the way from one head into another."""
    from transformer_lens import patching

    if not _swept(subject) or not hasattr(patching, "get_act_patch_direct_path"):
        return False
    if not forks(subject, _LAYER):
        return False
    try:
        patching._check_direct_path_support(subject.model, [0], "q")
    except ValueError:
        return False
    return subject.dims.n_heads > 1


def _halfway(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return before + (1 - 1e-6) * (after - before)


@contextlib.contextmanager
def _one_reader(subject: LensModel) -> Iterator[None]:
    """Attention sees an edit of resid_pre; the sum after it has the value from before."""
    lost = Box()

    def remember(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        lost.value = before - after
        return after

    def restore(out: torch.Tensor) -> torch.Tensor:
        if lost.value is not None:
            out, lost.value = out + lost.value.reshape(out.shape), None
        return out

    site = f"blocks.{_LAYER}."
    with (
        treated(subject, site + "resid_pre", remember),
        edited(subject, site + "attn_out", restore),
    ):
        yield


def _heads(subject: LensModel) -> bool:
    site = f"blocks.{_LAYER}.attn.k"
    return _editable(site)(subject) and subject.dims.n_kv_heads > 1


FAULTS: tuple[Fault, ...] = (
    _fault(
        "edit_dropped",
        "an edit at hook_resid_post is silently dropped",
        "resid_post",
        _dropped,
        "interventions",
    ),
    _fault(
        "edit_of_pattern_dropped",
        "an edit at hook_pattern is silently dropped",
        "attn.pattern",
        _dropped,
        "interventions",
    ),
    _fault(
        "edit_of_first_position",
        "an edit at hook_z acts on the first position only",
        "attn.z",
        _first_position,
        "interventions",
    ),
    _fault(
        "edit_of_first_row",
        "an edit at hook_mlp_out acts on the first row of the batch only",
        "mlp_out",
        _first_row,
        "interventions",
    ),
    _fault(
        "edit_applied_twice",
        "what an edit at hook_resid_pre changes is changed twice",
        "resid_pre",
        _twice,
        "interventions",
    ),
    _fault(
        "edit_weakened",
        "an edit at hook_attn_out falls short by one part in a million",
        "attn_out",
        _halfway,
        "interventions",
    ),
    Fault(
        "edit_of_first_head",
        "grouped heads",
        "an edit at hook_k acts on the first key head only",
        lambda s: treated(s, f"blocks.{_LAYER}.attn.k", _first_head),
        exactly(f"blocks.{_LAYER}.attn.k"),
        _heads,
        needs="interventions",
    ),
    Fault(
        "edit_seen_by_one_reader",
        "behaviour",
        "an edit at hook_resid_pre reaches attention, not the residual sum",
        _one_reader,
        exactly(f"blocks.{_LAYER}.resid_pre"),
        lambda s: (
            s.family.of(_LAYER).residual_multiplier == 1.0
            and all(_editable(f"blocks.{_LAYER}.{k}")(s) for k in ("resid_pre", "attn_out"))
        ),
        needs="interventions",
    ),
    _fault(
        "patch_rounded",
        "what a patch of hook_mlp_out puts in is some units in the last place off",
        "mlp_out",
        _rounded,
        "patching",
    ),
    _fault(
        "patch_reaches_back",
        "a patch of hook_resid_post changes the position before it a little",
        "resid_post",
        _backwards,
        "patching",
    ),
    _fault(
        "patch_of_next_head",
        "a patch of one head's z lands in the next head",
        "attn.z",
        _next_head,
        "patching",
    ),
    Fault(
        "patch_from_changed_cache",
        "behaviour",
        "the clean run's cache keeps queries a part in a million too large",
        _cache_changed,
        exactly(f"blocks.{_LAYER}.attn.q"),
        lambda s: _editable(f"blocks.{_LAYER}.attn.q")(s) and _keeps_scale(s),
        needs="patching",
    ),
    Fault(
        "sweep_shifted",
        "behaviour",
        "get_act_patch_resid_pre returns its results one patch late",
        lambda _: _sweep_shifted(),
        exactly("blocks.0.resid_pre"),
        lambda s: _swept(s) and _editable("blocks.0.resid_pre")(s),
        needs="patching",
    ),
    Fault(
        "stack_swapped",
        "behaviour",
        "get_act_patch_attn_head_all_pos_every has keys for queries and queries for keys",
        lambda _: _stack_swapped(),
        exactly("blocks.0.attn.q"),
        _stacks,
        needs="patching",
    ),
    Fault(
        "path_into_other_head",
        "behaviour",
        "get_act_patch_direct_path patches the input of the head before the one asked for",
        lambda _: _path_into_other_head(),
        exactly("blocks.1.attn.q"),
        _has_paths,
        needs="patching",
    ),
    Fault(
        "patch_of_next_cross_head",
        "behaviour",
        "a patch of one head's z, where a decoder attends to its encoder, lands in the next head",
        lambda s: treated(s, _crossing(s), _next_head),
        lambda s: (_crossing(s),),
        lambda s: s.family.encoder > 0 and _editable(_crossing(s))(s),
        needs="patching",
    ),
    Fault(
        "target_ignored",
        "tokens",
        "tokens that a call gives to the decoder are not used: it gets the encoder's",
        _target_ignored,
        exactly("logits"),
        lambda s: s.family.encoder > 0,
        needs="patching",
    ),
)
