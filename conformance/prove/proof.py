"""What ``conformance prove`` writes: plain numbers, no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field

FILE_NAME = "prove.jsonl"

#: Gates in common use, on logits: name -> what it allows.
GATES = (
    "allclose rtol 1e-3 atol 3e-2",
    "allclose rtol 1e-5 atol 1e-3",
    "mean KL < 0.1",
    "min cosine > 0.99",
)


@dataclass(frozen=True, slots=True)
class Proof:
    """What the checks made of one fault in one port of one twin.

    Attributes:
        fault: the fault's name, or ``none`` for the port as it is.
        klass: its class of bug (``class`` in the file).
        caught: whether any check failed that passes without it; for a precision fault, whether
            *same function* held and *same precision* did not.
        checks: the checks that failed.
        site_true: where the fault is; any of these counts as named.
        site_named: whether the first divergence is there. None for an equivalent, and where the
            check that must name it fails at every such site without the fault.
        named: the first divergence of the check that must name it.
        factor: the largest measured/allowed of *same function* (of *same precision* for a
            precision fault), on the prompts that it took. For the unfaulted port and
            equivalents, how near to 1 what holds came. None where nothing but exact weights or
            missing hooks is at fault.
        gates: gate -> whether it would have caught the fault, in the dtype that users run.
        prompts: the prompts that it took, for a fault up to the first on which it was caught
            and named.
        seed: the twin's, for an unfaulted port.
        alarms: of an unfaulted port, the checks that fail although the ledger expects no
            such failure: false alarms, or bugs not yet known.
        note: why there is no verdict, if there is none.
    """

    kind: str
    fault: str
    klass: str
    model: str
    subject: str
    caught: bool
    checks: tuple[str, ...] = ()
    site_true: tuple[str, ...] = ()
    site_named: bool | None = None
    named: str | None = None
    factor: float | None = None
    gates: dict[str, bool] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    seed: int | None = None
    alarms: tuple[str, ...] = ()
    duration_s: float = 0.0
    note: str = ""

    def to_json(self) -> str:
        """One line of ``prove.jsonl``."""
        data = dataclasses.asdict(self)
        data["class"] = data.pop("klass")
        if self.factor is not None and not math.isfinite(self.factor):
            data["factor"] = str(self.factor)
        return json.dumps(data, ensure_ascii=False, allow_nan=False)
