"""``[[tier]]``: classes of machines by memory; some are known without being written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conformance.spec.problems import quote, validate
from conformance.spec.tables import Memory, Tier

if TYPE_CHECKING:
    from conformance.spec.problems import Report

_GB = 10**9


def _tier(name: str, note: str, *, gpu: float = 0, cpu: float = 0) -> Tier:
    found = [Memory(kind="gpu", bytes=round(gpu * _GB))] if gpu else []
    found += [Memory(kind="cpu", bytes=round(cpu * _GB))] if cpu else []
    return Tier(name=name, memories=tuple(found), note=note)


#: Machines that people rent, as their vendors state them, in units of 10**9 bytes.
DEFAULT_TIERS: tuple[Tier, ...] = (
    _tier("free", "Google Colab, free: a T4 and its RAM", gpu=16, cpu=12.7),
    _tier("paid-gpu", "Google Colab, paid: an A100", gpu=40),
    _tier("gpu-80", "a single GPU: A100 or H100 of 80 GB", gpu=80),
    _tier("paid-cpu", "Google Colab, paid: its RAM", cpu=83.5),
    _tier("gpu-141", "a single GPU: H200", gpu=141),
)
#: What no tier is large enough for.
BEYOND = "beyond"


def read_tiers(raw: Mapping[str, Any], report: Report) -> tuple[Tier, ...]:
    """The default tiers and the ``[[tier]]`` tables, smallest first; problems go to ``report``.

    A table replaces the default tier of its name.
    """
    tables = raw.get("tier", [])
    if not isinstance(tables, list):
        report.add("tier", "is a single table", "write [[tier]], with two brackets")
        tables = []
    first: dict[str, int] = {}
    found = {tier.name: tier for tier in DEFAULT_TIERS}
    for index, table in enumerate(tables):
        name = table.get("name") if isinstance(table, Mapping) else None
        where = f"tier[{index}]" + (f" (name {quote(name)})" if isinstance(name, str) else "")
        if name == BEYOND:
            said = f"{BEYOND!r} is what fits no tier"
            report.add(f"{where}.name", said, "give it another name")
        if isinstance(name, str) and name in first:
            said = f"already named by tier[{first[name]}]"
            report.add(f"{where}.name", said, "give one of the two another name")
        tier = validate(Tier, table, where, report)
        if isinstance(name, str):
            first.setdefault(name, index)
        if tier is not None:
            found[tier.name] = tier
    return tuple(sorted(found.values(), key=lambda tier: tier.size))
