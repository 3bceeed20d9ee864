"""The bench on which faults are proven: what it saves, restores and writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from twins import twin_model

from conformance.checks.base import Context, Pass
from conformance.prove.command import Task, figures, good, summary, tasks, work
from conformance.records import Comparison

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.prove.bench import Bench
    from conformance.prove.proof import Proof


def _comparison(site: str, measured: float) -> Comparison:
    return Comparison("same_function", site, "sixteen", measured, 1.0, measured <= 1.0)


# --- comparisons that need not be made twice ----------------------------------------------------


def test_only_the_same_bits_have_the_same_comparison() -> None:
    from conformance.recall import Recall

    recall = Recall()
    made: list[float] = []

    def compare(value: torch.Tensor, run: str = "a run", site: str = "embed") -> Comparison:
        def fresh() -> Comparison:
            made.append(float(value.sum()))
            return _comparison(site, made[-1])

        return recall(run, site, value, fresh)

    value = torch.tensor([1.0, 2.0], dtype=torch.float64)
    first = compare(value)
    assert compare(value.clone()) is first
    assert made == [3.0]
    recall.learning = False
    value[0] += 1e-15
    other = value.clone()
    assert compare(other) is not first, "what was seen is kept apart from what changes later"
    assert compare(value.float()) is not first, "another dtype"
    assert compare(value[:1]) is not first, "another shape"
    compare(other, site="ln_final")
    compare(other, run="another run")
    assert len(made) == 6
    nan = torch.tensor([float("nan")])
    recall.learning = True
    compare(nan)
    compare(nan)
    assert len(made) == 8, "NaN equals nothing"


def test_comparisons_are_made_outside_promotion() -> None:
    from conformance.precision import promoted
    from conformance.recall import Recall

    seen: list[torch.dtype] = []

    def compare() -> Comparison:
        seen.append(torch.ones(1).double().float().dtype)
        return _comparison("embed", 0.0)

    with promoted(torch.float64):
        Recall()("a run", "embed", torch.ones(1), compare)
        assert torch.ones(1).float().dtype == torch.float64
    assert seen == [torch.float32]


# --- the bench ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(twin_cache: Path) -> Bench:
    from conformance.prove.bench import PROMPTS, Bench

    return Bench.load(twin_model("gpt2", prompts=PROMPTS), "bridge", twin_cache)


def test_recalled_comparisons_are_those_that_a_plain_run_makes(bench: Bench) -> None:
    from conformance.checks import registry
    from conformance.engine import Running, run_passes
    from conformance.faults import CATALOGUE

    prompt = next(p for p in bench.reference.prompts if p.name == "sixteen")
    run = Pass("float64", "plain", prompt)
    found: list[list[Comparison]] = []
    with CATALOGUE["mlp_out_scaled"].apply(bench.exact):
        for context in (bench._context(bench.exact), Context(bench.reference, bench.exact)):
            running = Running([registry()["activations"](), registry()["logits"]()])
            run_passes(running, context, [run], lambda _: None)
            found.append([c for check in running.checks for c in check.comparisons])
    assert found[0] == found[1]
    assert any(not c.ok for c in found[0])


def test_a_wrong_fold_leaves_the_processed_port_as_it_was(bench: Bench) -> None:
    from conformance.faults import CATALOGUE

    subject = bench.processed["float64"]
    prompt = bench.reference.prompts[0]
    before = subject.run(prompt, lambda *_: None)
    proofs = {}
    for name, fault in CATALOGUE.items():
        if fault.corrupt is not None and bench.provable(fault):
            proofs[name] = bench.prove(fault)
            assert torch.equal(subject.run(prompt, lambda *_: None), before), name
    assert {"fold_final_norm_twice", "fold_bias_dropped", "fold_value_bias_twice"} <= set(proofs)
    assert all(p.caught and p.site_named for p in proofs.values())
    assert all(any(p.gates.values()) for p in proofs.values())


def test_what_a_fold_corrupts_is_put_back_when_something_raises(bench: Bench) -> None:
    from conformance.prove.bench import restored

    subject = bench.processed["float64"]
    parameter = next(iter(subject.model.parameters()))
    before = parameter.detach().clone()

    def corrupt() -> None:
        with restored(subject), torch.no_grad():
            parameter.zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        corrupt()
    assert torch.equal(parameter, before)


def test_a_fault_is_pursued_no_further_than_it_is_named(bench: Bench) -> None:
    from conformance.faults import CATALOGUE

    assert bench.prove(CATALOGUE["bias_q_skipped"]).prompts == ("sixteen",)
    # Padding shows on padded prompts alone.
    assert bench.prove(CATALOGUE["padding_ignored"]).prompts == ("sixteen", "padded_left")


def test_nothing_is_proven_where_the_check_fails_without_the_fault(twin_cache: Path) -> None:
    """GPT-J's scores hook shows the pattern (finding 004): `patterns` fails there unfaulted."""
    from conformance.faults import CATALOGUE
    from conformance.prove.bench import Bench

    port = Bench.load(twin_model("gptj", prompts=("sixteen",)), "bridge", twin_cache)
    fault = CATALOGUE["pattern_shown_unnormalised"]
    assert fault.fits(port.exact)
    assert not port.provable(fault)
    assert port.provable(CATALOGUE["z_of_another_pattern"])


def test_nothing_is_proven_where_the_check_does_not_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance.faults import CATALOGUE

    drops, padding = CATALOGUE["generation_drops_hooks"], CATALOGUE["generation_sees_padding"]
    counts = CATALOGUE["runs_counted"]
    steered, logits = (_comparison(s, 0.0) for s in (*drops.sites(bench.exact), "logits"))
    seen: list[Comparison] = [steered, logits]
    monkeypatch.setattr(bench, "_invariants", lambda name: {name: seen})
    monkeypatch.setattr(bench, "_not_applicable", {})
    assert all(bench.provable(fault) for fault in (drops, padding, counts))
    monkeypatch.setattr(bench, "_not_applicable", {"generation": {padding.part}})
    assert bench.provable(drops)
    assert not bench.provable(padding), "the part of the check that could see it"
    seen.remove(steered)
    assert not bench.provable(drops)
    assert bench.provable(counts), "its site is named only when it is wrong"
    seen.clear()
    assert not bench.provable(counts)


def test_a_site_that_is_wrong_anyway_is_not_held_against_the_checks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance.faults import CATALOGUE

    known = frozenset({("activations", "same_function", "blocks.1.attn_out")})
    monkeypatch.setattr(bench, "known", known)
    found = bench.prove(CATALOGUE["attn_out_scaled"])
    assert found.caught
    assert found.site_named is None
    counts = figures([found])
    assert (counts["caught"], counts["named"], counts["nameless"]) == (1, 0, 1)
    assert not any(line.startswith("misnamed") for line in summary([found]))


def test_a_check_that_dies_unfaulted_costs_one_proof(
    twin_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance.faults import CATALOGUE
    from conformance.prove import ports
    from conformance.prove.bench import Bench

    def dies(self: Bench, name: str) -> object:
        raise RuntimeError(f"{name} died")

    monkeypatch.setattr(Bench, "_invariants", dies)
    faults = [CATALOGUE["sweep_shifted"], CATALOGUE["bias_q_skipped"]]
    model = twin_model("gpt2", prompts=("sixteen",))
    _, broken, other = ports.prove(model, "bridge", faults, twin_cache)
    assert not broken.caught
    assert broken.note == "could not be put in: RuntimeError: patching died"
    assert other.caught


def test_the_right_port_stays_under_its_bounds(bench: Bench) -> None:
    right = bench.unfaulted()
    assert not right.caught
    assert right.alarms == ()
    assert right.factor is not None
    assert right.factor < 0.5
    assert right.seed == 0


# --- the run ------------------------------------------------------------------------------------


def _spec(tmp_path: Path, entries: str) -> tuple[object, Path]:
    from conformance.spec import load_spec

    (tmp_path / "models.toml").write_text("schema = 1\n" + entries)
    return load_spec(tmp_path / "models.toml"), tmp_path


GPT2 = '[[model]]\nid = "gpt2-test"\narchitecture = "GPT2LMHeadModel"\nsource = { twin = "gpt2" }\n'


def test_every_further_seed_is_a_task_without_faults(tmp_path: Path) -> None:
    spec, _ = _spec(tmp_path, GPT2)
    found = tasks(spec, ["gpt2-test"], ["bridge"], [], tmp_path, 3)  # type: ignore[arg-type]
    assert [task.seed for task in found] == [None, 1, 2]


def test_a_twin_of_another_seed_is_judged_unfaulted(twin_cache: Path) -> None:
    prompts = ("one", "sixteen", "padded_left")
    model = twin_model("gpt-neox", prompts=prompts)
    outcome = work(Task(model, "bridge", None, (), str(twin_cache), seed=1))
    (right,) = outcome.proofs
    assert (right.kind, right.seed, right.model) == ("unfaulted", 1, model.id)
    assert right.prompts == prompts, "all prompts, not those of the faults alone"
    assert not right.caught
    assert good(right)
    assert json.loads(right.to_json())["seed"] == 1


def test_a_port_that_is_expected_not_to_load_is_no_error(twin_cache: Path) -> None:
    from conformance.checks.names import CHECKS

    failures = [
        {"subject": "bridge", "check": check, "reason": "does not load", "link": "a link"}
        for check in CHECKS
    ]
    known = twin_model("falcon-11b", prompts=("one",), expected_failures=failures)
    outcome = work(Task(known, "bridge", None, (), str(twin_cache)))
    assert outcome.skipped == "expected: does not load (a link)"
    unknown = twin_model("falcon-11b", prompts=("one",), expected_failures=failures[1:])
    outcome = work(Task(unknown, "bridge", None, (), str(twin_cache)))
    assert "ln_attn" in outcome.error


def _proof(kind: str, **fields: object) -> Proof:
    from conformance.prove.proof import Proof

    base = {"fault": "none", "klass": "none", "model": "m", "subject": "s", "caught": False}
    return Proof(kind=kind, **{**base, **fields})  # type: ignore[arg-type]


def test_false_alarms_and_margins_are_counted_over_all_seeds() -> None:
    proofs = [
        _proof("unfaulted", seed=0, factor=0.01),
        _proof("unfaulted", seed=1, factor=0.03, caught=True, checks=("logits",)),
        _proof("unfaulted", seed=2, factor=0.02, alarms=("logits",), caught=True, named="logits"),
    ]
    found = figures(proofs)
    assert (found["unfaulted"], found["seeds"], found["alarms"], found["right"]) == (3, 3, 1, 0.03)
    assert [good(p) for p in proofs] == [True, True, False]
    assert "FALSE ALARM: none on m s (seed 2: logits, first at logits)" in summary(proofs)
