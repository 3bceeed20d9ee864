"""Why a port differs: hypotheses about configuration and formula, recomputed and compared.

At the first site that diverges although what it is computed from was right, one small formula
stands between equal inputs and different outputs. It is recomputed in float64 from the
reference's values, first as the checkpoint has it (this must reproduce the reference to the
same-function bound, or nothing is said), then under each hypothesis. One that reproduces the
subject to that bound is a cause.

    evidence = collect(reference, subject, config=config)
    causes = diagnose(evidence)

Several causes mean that this checkpoint cannot tell them apart; none, that no hypothesis fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.diagnose.anywhere import anywhere_step, hook_step
from conformance.diagnose.attention import attention_steps
from conformance.diagnose.evidence import Evidence, Run, checkpoint_config, collect, evidence, watch
from conformance.diagnose.formulas import SHOWN, Stage
from conformance.diagnose.mlps import experts_step, post_step, router_step
from conformance.diagnose.norms import component, norm_step
from conformance.diagnose.projections import linear, linear_step
from conformance.diagnose.registry import Court, Step
from conformance.diagnose.wiring import embed_step, head_step, positions_step, sum_step
from conformance.explain.explanations import Cause

if TYPE_CHECKING:
    from collections.abc import Iterator

_STAGED = {kind for stage in Stage if Stage.NORMED <= stage < Stage.OUT for kind in SHOWN[stage]}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What came of it.

    Attributes:
        causes: hypotheses that reproduce the subject, the most specific first.
        formulas: what was recomputed and reproduces the reference, in words.
        unproven: formulas that do not reproduce the reference here, so that nothing was made of
            them.
        function_right: the port's logits are right, so that only what its hooks show is wrong.
    """

    causes: tuple[Cause, ...] = ()
    formulas: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    function_right: bool = False


def diagnose(found: Evidence) -> tuple[Cause, ...]:
    """The causes of a divergence: none if nothing diverges or no hypothesis fits."""
    return investigate(found).causes


def investigate(found: Evidence) -> Diagnosis:
    """As :func:`diagnose`, with what was tried."""
    if found.site is None:
        return Diagnosis()
    court = Court(found)
    right = _logits_right(found)
    causes: list[Cause] = []
    formulas: list[str] = []
    unproven: list[str] = []
    for step in _steps(found, court.kind, court.layer, hooks=right):
        if not court.reproduces_reference(step):
            unproven.append(step.name)
            continue
        formulas.append(step.name)
        causes.extend(court.causes(step))
        if right and causes and causes[0].hypothesis == "hook_shows_other":
            break
    kept = [c for c in causes if c.hypothesis not in court.implied]
    return Diagnosis(tuple(_distinct(kept)), tuple(formulas), tuple(unproven), right)


def _distinct(causes: list[Cause]) -> Iterator[Cause]:
    """Without those that say the same."""
    seen: set[tuple[str, str]] = set()
    for cause in causes:
        key = cause.hypothesis, cause.statement
        if key not in seen:
            seen.add(key)
            yield cause


def _logits_right(found: Evidence) -> bool:
    """Whether an ordinary forward pass gives the reference's logits."""
    from conformance.compare import measure

    for name in found.prompts:
        shown = found.subject_plain(name, "logits")
        if shown is None:
            return False
        truth = found.truth(name, "logits")
        if shown.shape != truth.shape:
            return False
        away = measure("logits", truth, shown, found.prompt(name).valid).rel_max
        if not away <= found.allowed(name, "logits"):
            return False
    return True


def _steps(found: Evidence, kind: str, layer: int | None, *, hooks: bool) -> Iterator[Step]:
    """The formulas that may produce a kind of site."""
    if hooks:
        yield hook_step(found, kind, layer)
    norm = component(found, kind)
    if norm is not None:
        yield norm_step(found, kind, norm, layer)
    elif kind == "embed":
        yield embed_step(found)
    elif kind == "pos_embed":
        yield positions_step(found)
    elif kind == "logits":
        yield head_step(found)
    elif layer is not None:
        yield from _in_block(found, kind, layer)
    yield anywhere_step(found, kind, layer)


def _in_block(found: Evidence, kind: str, layer: int) -> Iterator[Step]:
    fam = found.family
    if kind in _STAGED:
        yield from attention_steps(found, kind, layer)
    elif kind in ("resid_pre", "resid_mid", "resid_post"):
        step = sum_step(found, kind, layer)
        if step is not None:
            yield step
    elif kind == "mlp.router_logits":
        yield router_step(found)
    elif kind == "mlp.post":
        step = post_step(found)
        if step is not None:
            yield step
    elif fam.moe and kind in ("mlp.out", "mlp_out"):
        step = experts_step(found, kind)
        if step is not None:
            yield step
    else:
        which = linear(found, kind)
        if which is not None:
            yield linear_step(found, which, layer)


__all__ = [
    "Cause",
    "Diagnosis",
    "Evidence",
    "Run",
    "checkpoint_config",
    "collect",
    "diagnose",
    "evidence",
    "investigate",
    "watch",
]
