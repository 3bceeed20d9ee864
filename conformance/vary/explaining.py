"""What a failing configuration ends as: its place, its cause and a script that shows it.

Most are explained by ``conformance explain``'s own means. A port that does not load has nothing to
be localised in, and a configuration that our descriptions do not fit only its logits: those get a
script of the same making that compares no more.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conformance.explain.command import TIMEOUT_S, ExplainJob
from conformance.explain.explanations import Explanation
from conformance.explain.reproduce import FILE_NAME, run_subprocess
from conformance.explain.script import Case, Port, Source, write
from conformance.vary.bench import model_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conformance.vary.bench import Bench
    from conformance.vary.records import Failure

#: Tokens of a script that compares logits alone: past a twin's window.
_TOKENS = tuple(range(3, 19))


@dataclass(frozen=True, slots=True)
class Explained:
    """What is added to a failure."""

    cause: str = ""
    where: str = ""
    script: str | None = None
    verified: bool = False
    note: str = ""


def explained(failure: Failure, bench: Bench, out: Path, *, logits_only: bool) -> Failure:
    """The failure with its place, its cause and a script in ``out``, as far as they can be had."""
    name = f"repro_{failure.number:03d}.py"
    (out / name).unlink(missing_ok=True)
    found = Explained()
    if failure.difference.check != "load" and not logits_only:
        found = _explained(failure, bench, out, name)
    if found.script is None and failure.difference.check in ("load", "run", "logits"):
        found = replace(_alone(failure, bench, out, name), cause=found.cause, where=found.where)
    return replace(
        failure,
        cause=found.cause,
        where=found.where,
        script=found.script,
        verified=found.verified,
        note="; ".join(filter(None, (failure.note, found.note))),
    )


def _explained(failure: Failure, bench: Bench, out: Path, name: str) -> Explained:
    model = model_of(bench.space, failure.config, bench.seed)
    folder = out / f".explaining_{failure.number:03d}"
    try:
        with bench.cache() as cache:
            job = ExplainJob(
                "subject",
                model,
                str(cache),
                bench.subject,
                bench.loader,
                out=str(folder),
                pictures=False,
            )
            outcome = bench.run(job, TIMEOUT_S)
        if outcome.status != "ok" or not outcome.records:
            return Explained(note=f"no explanation: {outcome.cause or outcome.status}")
        explanation = Explanation.from_dict(outcome.records[0])
        script = folder / FILE_NAME
        kept = None
        if script.is_file():
            shutil.copyfile(script, out / name)
            kept = name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    causes = [c for c in explanation.causes if c.exact]
    minimal = explanation.minimal
    return Explained(
        cause=f"{causes[0].hypothesis}: {causes[0].statement}" if causes else "",
        where=_where(explanation),
        script=kept,
        verified=kept is not None and minimal is not None and minimal.verified,
        note="explain finds no difference" if explanation.conforms else "",
    )


def _where(explanation: Explanation) -> str:
    at = explanation.location
    parts = (at.kind, at.part, at.site, at.sentence)
    return ", ".join(dict.fromkeys(filter(None, parts))) if at.kind != "none" else ""


def _alone(failure: Failure, bench: Bench, out: Path, name: str) -> Explained:
    """A script that loads both sides and compares their logits."""
    path = out / name
    path.write_text(_script(failure, bench), encoding="utf-8")
    ran = run_subprocess(path)
    if ran.code == 1 and ran.shows:
        return Explained(script=name, verified=True)
    path.unlink()
    lines = ran.output.strip().splitlines()
    return Explained(note=f"a script of its own did not show it: {lines[-1] if lines else ''}")


def _script(failure: Failure, bench: Bench) -> str:
    from conformance.bounds import PLAIN_IN_FLOAT32, SCRIPT_ALLOWED
    from conformance.checkpoints.shrink import arguments_of, shrink
    from conformance.checkpoints.twin_catalogue import TWINS
    from conformance.families import dims, family

    space, difference = bench.space, failure.difference
    entry = TWINS[space.twin]
    changes: Mapping[str, Any] = {**entry.config, **failure.config}
    config = shrink(entry.model_type, changes)
    source = Source(
        space.architecture,
        entry.model_type,
        arguments_of(entry.model_type, changes),
        bench.seed,
        entry.gains,
    )
    crashes = difference.check in ("load", "run")
    exact = not crashes and not (difference.measured or 0.0) > PLAIN_IN_FLOAT32
    d = dims(config)
    case = Case(
        title=f"{space.architecture} with {space.words(failure.choice)} "
        f"{'does not run' if crashes else 'has other logits'} in TransformerLens.",
        site="logits",
        tokens=(_TOKENS,),
        mask=None,
        layers=d.n_layers,
        exact=exact,
        allowed=SCRIPT_ALLOWED["float64" if exact else "float32"],
        crashes=crashes,
    )
    port = port_of(bench.subject, bench.loader, space.architecture)
    return write(source, port, case, family(space.architecture, config), d)


def port_of(subject: str, loader: str | None, architecture: str) -> Port:
    """How a script loads a subject, none of whose hooks it reads."""
    if loader is not None:
        return Port("declared", {}, loader=loader)
    if subject != "hooked":
        return Port("bridge", {})
    from conformance.implementations.hooked import OFFICIAL

    return Port("hooked", {}, official=OFFICIAL[architecture].name)
