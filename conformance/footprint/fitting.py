"""Whether a run fits a machine, and the smallest class of machines that it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.bounds import FOOTPRINT_MARGIN
from conformance.errors import DoesNotFit
from conformance.footprint.predict import predict
from conformance.jobs import Limit
from conformance.spec.tiers import BEYOND

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from conformance.footprint.predict import Footprint
    from conformance.footprint.shapes import Shape
    from conformance.spec import Memory, Tier


def size(number: float) -> str:
    """``12.7 GB``: in units of 10**9 bytes, as memories are sold."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.0f} MB"


def limit_of_tier(tier: Tier) -> Limit:
    """A tier's memories. A GPU alone will do."""
    gpus = tuple(memory.bytes for memory in tier.memories if memory.kind == "gpu")
    return Limit(f"tier {tier.name}", tier.largest("cpu"), gpus, anywhere=True)


def limit_here(memories: Sequence[Memory], workers: int = 1) -> Limit:
    """What is free on this machine, for each of some runs at a time.

    Runs take place in RAM, so that GPUs do not count yet.
    """
    cpu = max((m.bytes for m in memories if m.kind == "cpu"), default=0) // workers
    return Limit(
        "this machine" if workers == 1 else f"each of {workers} workers here",
        cpu,
        tuple(m.bytes for m in memories if m.kind == "gpu"),
    )


def fits(host_bytes: float, gpu_bytes: float, limit: Limit) -> bool:
    """Whether a run is certain to fit, the error of a prediction counted in.

    Args:
        host_bytes: what it needs in RAM.
        gpu_bytes: what it would need on a GPU instead.
    """
    if host_bytes * FOOTPRINT_MARGIN <= limit.cpu:
        return True
    return limit.anywhere and gpu_bytes * FOOTPRINT_MARGIN <= max(limit.gpus, default=0)


def require(shape: Shape, dtype: str, checks: Collection[str], limit: Limit) -> None:
    """Let a run of some checks go on only where it fits.

    Raises:
        DoesNotFit: it does not; the message says what it needs and what there is.
    """
    footprint = predict(shape, dtype, checks)
    if fits(footprint.host_bytes, footprint.gpu_bytes, limit):
        return
    there = [f"{size(limit.cpu)} of RAM"] if limit.cpu else []
    there += [f"a GPU of {size(gpu)}" for gpu in limit.gpus]
    unused = ", which no run uses yet" if limit.gpus and not limit.anywhere else ""
    raise DoesNotFit(
        f"needs {size(footprint.host_bytes * FOOTPRINT_MARGIN)} in RAM "
        f"({footprint.peak.name}, {footprint.dtype}); {limit.where} has "
        f"{' and '.join(there)}{unused}",
        "run it on a larger machine; `conformance tiers` says on which",
        {
            "limit": {
                "needed_bytes": round(footprint.host_bytes * FOOTPRINT_MARGIN),
                "there_bytes": limit.cpu,
                "there_gpu_bytes": list(limit.gpus),
            },
            "facts": footprint_facts(predict(shape, dtype)),
        },
    )


def tier_of(host_bytes: float, gpu_bytes: float, tiers: Sequence[Tier]) -> str:
    """The smallest tier that a run fits, of ``tiers`` from small to large; or that it fits none."""
    for tier in tiers:
        if fits(host_bytes, gpu_bytes, limit_of_tier(tier)):
            return tier.name
    return BEYOND


def footprint_facts(footprint: Footprint) -> dict[str, Any]:
    """What a record says of a model's memory: that of a run of all checks."""
    return {
        "footprint_bytes": footprint.host_bytes,
        "footprint": {
            "gpu_bytes": footprint.gpu_bytes,
            "phase": footprint.peak.name,
            "parts": dict(footprint.peak.parts),
        },
    }


def with_tier(metrics: Mapping[str, Any], tiers: Sequence[Tier]) -> dict[str, Any]:
    """Metrics whose facts name the tier, where they say how much memory is needed."""
    facts = metrics.get("facts", {})
    if not tiers or "footprint" not in facts:
        return dict(metrics)
    tier = tier_of(facts["footprint_bytes"], facts["footprint"]["gpu_bytes"], tiers)
    return {**metrics, "facts": {**facts, "tier": tier}}
