"""Faults inside what mixes positions without attention: decays, skips, shifts, gates."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from conformance.faults.base import Fault
from conformance.faults.inject import exposed, original, overwritten, returning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from conformance.implementations.lens_model import LensModel

#: What HuggingFace calls the rate at which a state decays, of which the decay is the exponential of
#: an exponential; and what a token adds to its own output without having been a state's.
_DECAYS, _SKIPS = ("time_decay", "A_log"), ("time_first", "D")


def _mixer(subject: LensModel) -> tuple[int, Any] | None:
    """The first layer after the first whose mixer is shown, and HuggingFace's module of it."""
    shown = [
        i
        for i in range(subject.dims.n_layers)
        if subject.family.of(i).mixer is not None and exposed(subject, f"blocks.{i}.mixer_out")
    ]
    if not shown:
        return None
    layer = (shown[1:] or shown)[0]
    return layer, original(subject.components()[f"blocks.{layer}.mixer"])


def _parameter(subject: LensModel, names: tuple[str, ...]) -> torch.Tensor | None:
    found = _mixer(subject)
    own = {} if found is None else dict(found[1].named_parameters(recurse=False))
    return next((own[name] for name in names if name in own), None)


def _mixer_out(subject: LensModel) -> tuple[str, ...]:
    found = _mixer(subject)
    return () if found is None else (f"blocks.{found[0]}.mixer_out",)


def _changing(
    names: tuple[str, ...], change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[LensModel], AbstractContextManager[None]]:
    def apply(subject: LensModel) -> AbstractContextManager[None]:
        parameter = _parameter(subject, names)
        assert parameter is not None
        return overwritten(parameter, change)

    return apply


def _shift(subject: LensModel, part: str) -> torch.nn.Module | None:
    """The module that gives each token the one before, of the mixer or of a shifted MLP."""
    found = _mixer(subject)
    if found is None or (part == "mlp" and not subject.family.of(found[0]).mlp_shifted):
        return None
    module = original(subject.components()[f"blocks.{found[0]}.{part}"])
    return getattr(module, "time_shift", None)


def _shifting(
    part: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[LensModel], AbstractContextManager[None]]:
    def apply(subject: LensModel) -> AbstractContextManager[None]:
        module = _shift(subject, part)
        assert module is not None
        return returning(module, change)

    return apply


def _later(shifted: torch.Tensor) -> torch.Tensor:
    """[batch, pos, d_model] one position later."""
    return torch.nn.functional.pad(shifted, (0, 0, 1, -1))


def _earlier(shifted: torch.Tensor) -> torch.Tensor:
    """[batch, pos, d_model] one position earlier: each token's own but the last's."""
    return torch.cat([shifted[:, 1:], shifted[:, -1:]], dim=1)


def _shifted_pre(subject: LensModel) -> tuple[str, ...]:
    found = _mixer(subject)
    return () if found is None else (f"blocks.{found[0]}.mlp.pre",)


@contextlib.contextmanager
def _open(subject: LensModel) -> Iterator[None]:
    """What the MLP returns is not multiplied by its receptance's sigmoid."""
    found = _mixer(subject)
    assert found is not None
    path = subject.family.of(found[0]).receptance
    assert path is not None
    module = original(subject.components()[f"blocks.{found[0]}.mlp"])
    with returning(module.get_submodule(path.rsplit(".", 1)[-1]), _saturated):
        yield


def _saturated(before: torch.Tensor) -> torch.Tensor:
    return torch.full_like(before, torch.inf)


def _gates(subject: LensModel) -> bool:
    found = _mixer(subject)
    return found is not None and subject.family.of(found[0]).receptance is not None


def _mlp_out(subject: LensModel) -> tuple[str, ...]:
    found = _mixer(subject)
    return () if found is None else (f"blocks.{found[0]}.mlp_out",)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "decay_faster",
        "mixer",
        "a recurrent state decays faster: its rate is 1 % larger before the exponential",
        _changing(_DECAYS, lambda t: t + 0.01),
        _mixer_out,
        lambda s: _parameter(s, _DECAYS) is not None,
    ),
    Fault(
        "decay_of_one_channel",
        "mixer",
        "the state of one channel, or head, decays as its neighbour's",
        _changing(_DECAYS, lambda t: torch.cat([t[1:2], t[1:]])),
        _mixer_out,
        lambda s: _parameter(s, _DECAYS) is not None,
    ),
    Fault(
        "own_token_dropped",
        "mixer",
        "what a token adds to its own output (a skip, RWKV's bonus) is dropped",
        _changing(_SKIPS, torch.zeros_like),
        _mixer_out,
        lambda s: _parameter(s, _SKIPS) is not None,
    ),
    Fault(
        "token_shift_missing",
        "mixer",
        "the mixer reads each token in place of the one before",
        _shifting("mixer", _earlier),
        _mixer_out,
        lambda s: _shift(s, "mixer") is not None,
    ),
    Fault(
        "token_shift_by_two",
        "mixer",
        "the mixer reads the token two before in place of the one before",
        _shifting("mixer", _later),
        _mixer_out,
        lambda s: _shift(s, "mixer") is not None,
    ),
    Fault(
        "mlp_shift_by_two",
        "mixer",
        "the MLP reads the token two before in place of the one before",
        _shifting("mlp", _later),
        _shifted_pre,
        lambda s: _shift(s, "mlp") is not None,
    ),
    Fault(
        "receptance_missing",
        "mixer",
        "the MLP's output is not multiplied by its receptance",
        _open,
        _mlp_out,
        _gates,
    ),
)
