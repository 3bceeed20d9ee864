"""The library's helpers that stack sweeps: which patches they make, and where they put the results.

What a patch does to a forward pass is judged sweep by sweep (:mod:`conformance.checks.sweeps`).
Here no forward pass is made: every patch of every sweep is applied to the corrupted run's value,
compared bit for bit, and answered by its number, which the stack must hold at its place.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.checks.base import Check, identical, structure
from conformance.checks.sweeps import quiet
from conformance.experiments.patches import patch
from conformance.experiments.patching import STACKS, SWEEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from conformance.families import Dims
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.records import Comparison


@dataclass(frozen=True)
class Cell:
    """One patch: what it is part of and where it belongs in the stack."""

    sweep: str
    index: tuple[int, ...]
    place: tuple[int, ...]

    @property
    def site(self) -> str:
        return f"blocks.{self.index[0]}.{SWEEPS[self.sweep].kind}"


def cells(name: str, dims: Dims, positions: int) -> list[Cell]:
    """The patches of a stack in the order in which they are made."""
    axes, sweeps = STACKS[name]
    found = []
    for number, sweep in enumerate(sweeps):
        own = ["pos" if axis == "dest" else axis for axis in SWEEPS[sweep].axes]
        counts = SWEEPS[sweep].counts(dims, dims.n_layers)
        far = [positions if axis == "pos" else n for axis, n in zip(own, counts, strict=True)]
        for index in itertools.product(*map(range, far)):
            place = (number, *(index[own.index(axis)] for axis in axes))
            found.append(Cell(sweep, index, place))
    return found


def stacked(
    check: Check,
    name: str,
    subject: LensModel,
    corrupted: Prompt,
    cache: Any,
    clean: Mapping[str, torch.Tensor],
    other: Mapping[str, torch.Tensor],
) -> Iterator[Comparison]:
    """One of :data:`STACKS`.

    Args:
        cache: the library's own, of the clean run.
        clean, other: site -> its value in the clean and in the corrupted run, no batch.
    """
    import torch
    from transformer_lens import patching

    due = cells(name, subject.dims, corrupted.tokens.shape[1])
    where, on = due[0].site, f"corrupted ({name})"
    wrong: dict[str, Comparison] = {}
    right: dict[str, Comparison] = {}
    points = subject.model.hook_dict  # the bridge makes it anew each time
    made = 0

    def record(_: torch.Tensor, fwd_hooks: Any, **options: Any) -> torch.Tensor:
        nonlocal made
        ((hook_name, hook),) = fwd_hooks
        if made < len(due):
            cell = due[made]
            sweep = SWEEPS[cell.sweep]
            before = other[cell.site]
            expected = patch(sweep.kind, sweep.axes[1:], cell.index[1:], clean[cell.site])(before)
            found = hook(before.clone()[None], hook=points[hook_name])[0]
            note = f"{cell.sweep}, patch {cell.index}"
            compared = identical(expected, found, site=cell.site, on=on, note=note)
            (right if compared.ok else wrong).setdefault(cell.site, compared)
        made += 1
        return torch.tensor(float(made))

    result = None
    with (
        subject.session(),
        check.port(name, where),
        quiet(),
        _replaced(subject.model, "run_with_hooks", record),
    ):
        result = getattr(patching, name)(subject.model, corrupted.tokens, cache, lambda n: n)
    if result is None:
        return
    if made != len(due):
        yield structure(where, f"{name} made {made} patches, not {len(due)}", on)
        return
    yield from (right | wrong).values()
    places = torch.zeros([1 + max(axis) for axis in zip(*(c.place for c in due), strict=True)])
    places = places.to(result.dtype)
    for number, cell in enumerate(due, 1):
        places[cell.place] = number
    compared = identical(places, result, site=where, on=on, note="patches at their places")
    if compared.index is not None:
        numbers = (n for n in (compared.reference, compared.subject) if n)
        misplaced = min((int(n) for n in numbers), default=1)
        site = due[misplaced - 1].site if misplaced <= len(due) else where
        compared = identical(places, result, site=site, on=on, note="patches at their places")
    yield compared


@contextlib.contextmanager
def _replaced(model: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """A method of one object replaced."""
    own = vars(model)
    before = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if before is None:
            del own[name]
        else:
            own[name] = before
