"""What a fault is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from conformance.faults.inject import exposed

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch

    from conformance.implementations.lens_model import LensModel

#: Class of bug -> a public thread or change in which a real port had one of it.
_TL = "https://github.com/TransformerLensOrg/TransformerLens"
SOURCES: dict[str, str] = {
    "rotary": f"{_TL}/pull/910",
    "attention scale": f"{_TL}/pull/694",
    "grouped heads": f"{_TL}/pull/1593",
    "mask": "https://github.com/huggingface/transformers/issues/39408",
    "softcap": f"{_TL}/pull/650",
    "attention variant": "https://github.com/vllm-project/vllm/pull/35523",
    "norm": f"{_TL}/issues/944",
    "mlp": "https://github.com/huggingface/transformers/pull/29402",
    "mixer": "https://github.com/huggingface/transformers/pull/47250",
    "router": f"{_TL}/issues/570",
    "wiring": f"{_TL}/issues/1648",
    "positions": f"{_TL}/issues/1609",
    "padding": f"{_TL}/issues/1609",
    "weights": f"{_TL}/issues/1620",
    "folding": f"{_TL}/pull/1580",
    "accessor": f"{_TL}/pull/1593",
    "hook": f"{_TL}/issues/1639",
    "behaviour": f"{_TL}/issues/1680",
    "precision": f"{_TL}/issues/104",
    "tokens": f"{_TL}/issues/369",
}


@dataclass(frozen=True)
class Fault:
    """A known-wrong port: a reversible change to a loaded subject.

    Attributes:
        name: unique.
        klass: the class of bug it stands for, a key of :data:`SOURCES`.
        what: one line for a reader.
        kind: ``fault`` changes the function; ``precision`` only its exactness; ``equivalent``
            neither, and must not be flagged.
        sites: where it is true, for this subject; more than one when a mask hides the difference
            between them.
        applies: whether this subject has what the fault breaks.
        apply: the change, undone when the context ends.
        named_by: of the checks that read whole forward passes, the one whose first divergence must
            be the site.
        corrupt: for a fault of weight processing, what it does to a subject that was processed
            rightly, given the weights before; in place. ``apply`` then makes processing wrong.
        needs: the check that makes runs of its own which alone can see it: it is judged by that
            check and no other, whose first divergence must then be the site.
        part: what of that check it needs, as the check calls it where it does not apply.
        appears: its site is one that the check names when it is wrong, and does not compare else.
        anew: whether it is in the subjects that the check loads anew, too.
        dtypes: those that a fault of precision shows in; None for all but float64.
        may_differ: for equivalents: site kinds, and ``weights``, that legitimately differ.
    """

    name: str
    klass: str
    what: str
    apply: Callable[[LensModel], AbstractContextManager[object]]
    sites: Callable[[LensModel], tuple[str, ...]] = lambda _: ()
    applies: Callable[[LensModel], bool] = lambda _: True
    kind: Literal["fault", "equivalent", "precision"] = "fault"
    named_by: str = "activations"
    corrupt: Callable[[LensModel, dict[str, torch.Tensor]], None] | None = None
    needs: str | None = None
    part: str | None = None
    appears: bool = False
    anew: bool = False
    dtypes: frozenset[str] | None = None
    may_differ: tuple[str, ...] = ()

    def fits(self, subject: LensModel) -> bool:
        """Whether this subject has what the fault breaks, in the layer where it breaks it."""
        return self.applies(subject) and _there(subject, self.sites(subject))

    @property
    def processed(self) -> bool:
        """Whether it shows only after weight processing, which cannot be undone."""
        return self.corrupt is not None

    @property
    def source(self) -> str | None:
        """Where a real port had such a bug."""
        return SOURCES.get(self.klass)


def _there(subject: LensModel, names: tuple[str, ...]) -> bool:
    """Whether the architecture has one of these sites, where it states any."""
    family = subject.family
    layers = range(subject.dims.n_layers)
    absent = {f"blocks.{i}.{kind}" for i in layers for kind in family.absent(i)}
    return not names or not absent.issuperset(names)


def at(
    *kinds: str, layer: Callable[[LensModel], int] | int = 1
) -> Callable[[LensModel], tuple[str, ...]]:
    """The first of these kinds that the subject shows, in one layer; the first if it shows none."""

    def sites(subject: LensModel) -> tuple[str, ...]:
        where = layer if isinstance(layer, int) else layer(subject)
        names = [f"blocks.{where}.{kind}" for kind in kinds]
        return tuple([n for n in names if exposed(subject, n)] or names)[:1]

    return sites


def exactly(*names: str) -> Callable[[LensModel], tuple[str, ...]]:
    """These sites, whatever the subject."""
    return lambda _: names
