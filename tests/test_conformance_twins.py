"""The end-to-end truth: real ports of eight architectures pass, or fail as models.toml expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import ROOT
from made_runs import obeys_the_schema
from twins import judge

from conformance.checks.names import CHECKS
from conformance.errors import NotApplicable
from conformance.ledger.judging import expected
from conformance.records import to_json, verdict_from_dict
from conformance.spec import load_spec

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = ("gpt2", "llama", "mistral", "gemma3", "gpt-neox", "mixtral", "olmo2", "bloom")
#: One short, one padded, one past the window; the whole set is what a real run is for.
PROMPTS = ("sixteen", "padded_left", "long")

MODELS = {m.id.removesuffix("-twin"): m for m in load_spec(ROOT / "models.toml").models}
CASES = [
    (twin, subject) for twin in SAMPLE for subject in MODELS[twin].subjects or ("bridge", "hooked")
]


_BOTH = {"same_function", "same_precision"}
#: What each of the checks of one forward pass must judge; the others judge what they can.
DUE = {
    "weights": {"exact"},
    "activations": _BOTH,
    "components": _BOTH,
    "logits": _BOTH,
    "loss": _BOTH,
}


@pytest.mark.parametrize(("twin", "subject"), CASES, ids=[f"{t}-{s}" for t, s in CASES])
def test_a_real_port_is_judged_as_expected(twin: str, subject: str, twin_cache: Path) -> None:
    prompts = PROMPTS[:2] if twin == "bloom" else PROMPTS  # its context has no bound: 512 tokens
    model = MODELS[twin].model_copy(update={"prompts": prompts})
    try:
        records = judge(model, subject, twin_cache)
    except NotApplicable as error:
        pytest.skip(str(error))
    assert tuple(records) == CHECKS
    verdicts = [expected(verdict_from_dict(record), model) for record in records.values()]
    assert all(obeys_the_schema(to_json(verdict)) for verdict in verdicts)
    unexpected = {
        v.check: (v.outcome, v.reason) for v in verdicts if v.outcome not in ("passed", "xfailed")
    }
    assert not unexpected
    for verdict in verdicts:
        if verdict.outcome == "xfailed":
            continue
        judgements = dict(verdict.verdict)
        assert DUE.get(verdict.check, set()) <= set(judgements), verdict.check
        assert judgements, verdict.check
        for name, summary in judgements.items():
            assert summary.compared > 0, (verdict.check, name)
            assert summary.failed == 0
            assert summary.margin is not None
            assert summary.margin <= 1 if name == "exact" else summary.margin < 1
    compared = records["activations"]["verdict"]["same_function"]["compared"]
    assert compared == records["activations"]["metrics"]["sites"] * len(prompts)
