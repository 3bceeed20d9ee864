"""``[[name]]`` and ``[[gap]]``: names that people know, and what no entry covers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conformance.spec.problems import quote, suggest, validate
from conformance.spec.tables import Gap, Name, id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conformance.spec.problems import Report


def read_names(raw: Mapping[str, Any], report: Report) -> tuple[Name, ...]:
    """The ``[[name]]`` tables; their problems go to ``report``."""
    models = {
        table["id"]: table
        for table in _tables(raw.get("model"))
        if isinstance(table, Mapping) and isinstance(table.get("id"), str)
    }
    found = []
    first: dict[str, int] = {}
    for index, table in enumerate(_arrays("name", raw, report)):
        where = f"name[{index}]"
        hub = table.get("hub") if isinstance(table, Mapping) else None
        if isinstance(hub, str):
            where += f" (hub {quote(hub)})"
            _unique(hub, index, first, models, where, report)
        if isinstance(table, Mapping):
            _twin(table, models, where, report)
        found.append(validate(Name, table, where, report))
    return tuple(name for name in found if name is not None)


def read_gaps(raw: Mapping[str, Any], report: Report) -> tuple[Gap, ...]:
    """The ``[[gap]]`` tables; their problems go to ``report``."""
    found = []
    for index, table in enumerate(_arrays("gap", raw, report)):
        where = f"gap[{index}]"
        if isinstance(table, Mapping) and ("architectures" in table) == ("names" in table):
            said = "both" if "names" in table else "neither"
            report.add(where, f"{said} of architectures and names", "write exactly one of them")
        found.append(validate(Gap, table, where, report))
    return tuple(gap for gap in found if gap is not None)


def _tables(raw: object) -> Sequence[Any]:
    return raw if isinstance(raw, list) else ()


def _arrays(key: str, raw: Mapping[str, Any], report: Report) -> Sequence[Any]:
    if key in raw and not isinstance(raw[key], list):
        report.add(key, "is a single table", f"write [[{key}]], with two brackets")
    return _tables(raw.get(key))


def _unique(
    hub: str,
    index: int,
    first: dict[str, int],
    models: Mapping[str, Any],
    where: str,
    report: Report,
) -> None:
    """That the id a name gets when it is judged itself is nobody else's."""
    own = id_of(hub)
    if own in first:
        report.add(f"{where}.hub", f"already named by name[{first[own]}]", "keep one of the two")
    elif own in models:
        said = f"would get the id {own!r}, which a [[model]] has"
        report.add(f"{where}.hub", said, "choose another id for the newer of the two")
    first.setdefault(own, index)


def _twin(
    table: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], where: str, report: Report
) -> None:
    """That exactly one of twin and not_judged is there, and that the twin is one that fits."""
    if ("twin" in table) == ("not_judged" in table):
        report.add(
            where,
            "both twin and not_judged" if "twin" in table else "neither twin nor not_judged",
            'write twin = "<id of a [[model]]>", or not_judged = "<why there is none>"',
        )
        return
    twin = table.get("twin")
    if not isinstance(twin, str):
        return
    model = models.get(twin)
    if model is None:
        twins = [name for name, other in models.items() if _is_twin(other)]
        report.add(f"{where}.twin", f"no model {twin!r}", suggest(twin, twins))
    elif not _is_twin(model):
        report.add(
            f"{where}.twin",
            f"{twin!r} is no twin: it has weights of its own",
            'name a [[model]] whose source is a twin, or write not_judged = "..."',
        )
    elif table.get("architecture", model.get("architecture")) != model.get("architecture"):
        report.add(
            f"{where}.twin",
            f"{twin!r} is a {model.get('architecture')}, the name's architecture is another",
            "name a twin of that architecture",
        )


def _is_twin(model: Mapping[str, Any]) -> bool:
    source = model.get("source")
    return isinstance(source, Mapping) and "twin" in source
