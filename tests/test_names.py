"""Names that people know: in ``models.toml``, chosen with ``--model``, recorded and reported."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fakes import ROOT, models_toml, run_suite

from conformance.checks.names import CHECKS
from conformance.errors import SpecError
from conformance.records import (
    OUTCOMES,
    Footer,
    Header,
    Name,
    Records,
    Verdict,
    read,
    to_json,
)
from conformance.report.markdown import page
from conformance.report.names import judged, short, worst
from conformance.selection import SelectionError, listed, select, with_named
from conformance.spec import NameSource, Spec, TwinSource, load_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Load = Callable[[str], Spec]

COMMIT = "0123456789" * 4
TWINS = models_toml(["ok", "sub.fail"])
OWN = """
[[model]]
id = "mine"
architecture = "GPT2LMHeadModel"
source = { path = "." }
"""


def name(hub: str, rest: str, architecture: str = "GPT2LMHeadModel") -> str:
    return f'[[name]]\nhub = "{hub}"\narchitecture = "{architecture}"\n{rest}\n'


NAMES = "\n".join(
    [
        name("gpt2", 'twin = "ok"'),
        name("Some/Name", f'twin = "sub.fail"\nrevision = "{COMMIT}"\ntrust_remote_code = true'),
        name("no/code", 'not_judged = "remote code only"', "neel-solu-old"),
    ]
)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str) -> Spec:
        file = tmp_path / "models.toml"
        file.write_text(TWINS + OWN + text, encoding="utf-8")
        return load_spec(file)

    return write_and_load


# --- models.toml --------------------------------------------------------------------------------


def test_a_name_becomes_a_model_of_the_hub(load: Load) -> None:
    spec = load(NAMES)
    plain, pinned, _ = spec.names
    assert plain.model().id == "gpt2"
    assert plain.model().source == NameSource(hub="gpt2", revision=None)
    own = pinned.model()
    assert (own.id, own.evidence, own.hooked_name) == ("some--name", "real", "Some/Name")
    assert own.source == NameSource(hub="Some/Name", revision=COMMIT)
    assert own.trust_remote_code


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (name("a/b", ""), "neither twin nor not_judged"),
        (name("a/b", 'twin = "ok"\nnot_judged = "why"'), "both twin and not_judged"),
        (name("a/b", 'twin = "okk"'), "twin: no model 'okk' \N{EM DASH} did you mean \"ok\"?"),
        (name("a/b", 'twin = "mine"'), "'mine' is no twin"),
        (name("a/b", 'twin = "ok"', "LlamaForCausalLM"), "the name's architecture is another"),
        (name("a/b", 'twin = "ok"') + name("A/B", 'twin = "ok"'), "already named by name[0]"),
        (name("mine", 'twin = "ok"'), "would get the id 'mine', which a [[model]] has"),
        (name("a b", 'twin = "ok"'), "'a b' is not a repository of the hub"),
        (name("a/b", 'twin = "ok"\nrevision = "main"'), "'main' is not a commit"),
        (name("a/b", 'twin = "ok"\ncolour = "red"'), "colour: unknown key"),
        (name("a/b", 'not_judged = ""'), "not_judged: is empty"),
        ('[[gap]]\nreason = "r"', "neither of architectures and names"),
        ('[[gap]]\nreason = "r"\nnames = ["a"]\narchitectures = ["b"]', "both of architectures"),
        ('[[gap]]\nnames = ["a"]', "reason: missing"),
        ('[[gap]]\nreason = "r"\nnames = []', "names: is empty"),
        ('[[gap]]\nreason = "r"\nnames = ["a"]\ntransformer_lens = "4"', "no version specifier"),
    ],
)
def test_what_is_wrong_with_a_name_or_a_gap_is_said(load: Load, text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text)
    (problem,) = caught.value.message.splitlines()[1:]
    assert said.replace("no version", "not a version") in problem
    assert problem.strip().startswith("line ")


def test_all_problems_are_reported_at_once(load: Load) -> None:
    wrong = name("a/b", "") + name("c/d", 'twin = "x"') + '[[gap]]\nreason = "r"\n'
    with pytest.raises(SpecError, match="3 problems"):
        load(wrong)


def test_single_tables_are_refused(load: Load) -> None:
    with pytest.raises(SpecError, match=r"name: is a single table .* write \[\[name\]\]"):
        load('[name]\nhub = "a/b"')


def test_every_listed_name_rests_on_a_twin_or_says_why_not() -> None:
    spec = load_spec(ROOT / "models.toml")
    twins = {m.id for m in spec.models if isinstance(m.source, TwinSource)}
    assert len(spec.names) >= 216
    assert all(n.twin in twins if n.twin else n.not_judged for n in spec.names)


# --- Choosing -----------------------------------------------------------------------------------


def test_a_plain_run_judges_no_name_itself(load: Load) -> None:
    spec = load(NAMES)
    assert with_named(spec, ()) == spec
    assert {case.model for case in select(spec)} == {"ok", "sub.fail", "mine"}


@pytest.mark.parametrize("asked", ["Some/Name", "some/name", "some--name"])
def test_a_name_is_chosen_by_what_the_hub_or_a_record_calls_it(load: Load, asked: str) -> None:
    spec = with_named(load(NAMES), [asked])
    cases = select(spec, models=[asked], checks=["logits"])
    assert {case.model for case in cases} == {"some--name"}


def test_a_name_that_is_not_judged_is_refused_with_its_reason(load: Load) -> None:
    with pytest.raises(SelectionError, match="no/code is not judged: remote code only"):
        with_named(load(NAMES), ["no/code"])


def test_a_misspelt_name_is_recognised(load: Load) -> None:
    spec = load(NAMES)
    with pytest.raises(SelectionError, match="did you mean 'Some/Name'"):
        select(with_named(spec, ["Some/Nam"]), models=["Some/Nam"])


def test_listed_are_the_names_that_a_run_says_something_about(load: Load) -> None:
    spec = load(NAMES)
    gpt2, other, left_out = listed(spec, {"ok", "sub.fail", "mine"})
    assert (gpt2.hub, gpt2.evidence, gpt2.model) == ("gpt2", "twin", "ok")
    assert other.model == "sub.fail"
    assert (left_out.evidence, left_out.model, left_out.reason) == (None, None, "remote code only")
    assert [n.hub for n in listed(spec, {"ok"})] == ["gpt2"]
    assert listed(spec, {"mine"}) == ()
    assert [n.evidence for n in listed(with_named(spec, ["gpt2"]), {"gpt2"})] == ["real"]


def test_a_name_without_a_commit_is_fetched_as_it_is_now() -> None:
    spec = load_spec(ROOT / "models.toml")
    (model,) = with_named(spec, ["gpt2"]).models[len(spec.models) :]
    assert isinstance(model.source, NameSource)
    assert (model.source.hub, model.source.revision) == ("gpt2", None)


# --- Records and reports ------------------------------------------------------------------------

HEADER = Header("2026-01-01T00:00:00+00:00", {}, "Linux", {}, "models.toml", "0" * 64)
VERDICT = Verdict("ok", "bridge", "logits", "passed", "GPT2LMHeadModel", "twin")
RESTING = Name("gpt2", "GPT2LMHeadModel", "twin", "ok")


def records(*verdicts: Verdict, names: tuple[Name, ...] = (RESTING,)) -> Records:
    footer = Footer("2026-01-01T00:01:00+00:00", 0, 60.0, {}, len(verdicts))
    return Records(HEADER, verdicts, footer, names)


def section(found: Records) -> str:
    return page(found).split("## Names")[1].split("\n## ")[0]


def test_a_file_of_the_first_schema_is_still_read(tmp_path: Path) -> None:
    header = {**json.loads(to_json(HEADER)), "schema_version": 1}
    verdict = {k: v for k, v in json.loads(to_json(VERDICT)).items() if k != "commit"}
    file = tmp_path / "records.jsonl"
    file.write_text(f"{json.dumps(header)}\n{json.dumps(verdict)}\n")
    found = read(file)
    assert (found.header.schema_version, found.names, found.verdicts) == (1, (), (VERDICT,))


def test_names_come_back_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text("".join(f"{to_json(r)}\n" for r in (HEADER, RESTING, VERDICT)))
    assert read(file).names == (RESTING,)


def test_the_worst_verdict_stands_for_the_name() -> None:
    (found,) = judged(records(VERDICT, replace(VERDICT, check="loss", outcome="xfailed")))
    assert found.outcomes == {"bridge": "xfailed"}
    assert all(worst([outcome, "failed"]) in {outcome, "failed"} for outcome in OUTCOMES)
    assert worst(["passed", "not_applicable"]) == "passed"


def test_the_report_says_what_a_name_rests_on() -> None:
    own = Name("Some/Name", "GPT2LMHeadModel", "real", "some--name")
    left_out = Name("no/code", "neel", None, None, "remote code only")
    real = replace(VERDICT, model="some--name", outcome="failed", commit=COMMIT)
    text = section(records(VERDICT, real, names=(RESTING, own, left_out)))
    assert "| gpt2 | GPT2LMHeadModel | twin: ok | pass |" in text
    assert "| Some/Name | GPT2LMHeadModel | real at 01234567 | FAIL |" in text
    assert "Not judged: remote code only (1): no/code" in text
    assert "<details>" not in text


def test_many_names_are_folded() -> None:
    many = tuple(replace(RESTING, hub=f"org/n{i}") for i in range(30))
    text = section(records(VERDICT, names=many))
    assert "<details><summary>30 names" in text
    assert text.count("| twin: ok |") == 30


def test_without_names_there_is_no_section() -> None:
    assert "## Names" not in page(records(VERDICT, names=()))
    assert short(records(VERDICT, names=())) == []


def test_a_terminal_gets_counts_and_the_names_that_do_not_conform() -> None:
    other = Name("Some/Name", "GPT2LMHeadModel", "twin", "sub.fail")
    left_out = Name("no/code", "neel", None, None, "remote code only")
    bad = replace(VERDICT, model="sub.fail", outcome="failed")
    absent = replace(VERDICT, subject="hooked", outcome="not_applicable")
    lines = short(records(VERDICT, bad, absent, names=(RESTING, other, left_out)))
    assert lines == [
        "names, bridge: 1 FAIL, 1 pass",
        "  FAIL: Some/Name",
        "names not judged: 1; report.md says why",
    ]


def test_a_run_records_its_names_and_show_tells_them(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(TWINS + NAMES)
    done = run_suite(tmp_path, "--check", "logits", "-n", "2")
    assert done.code == 1
    assert {n.hub: n.model for n in done.records.names} == {
        "gpt2": "ok",
        "Some/Name": "sub.fail",
        "no/code": None,
    }
    report = (tmp_path / "conformance-out" / "report.md").read_text()
    assert "| Some/Name | GPT2LMHeadModel | twin: sub.fail | FAIL |" in report


def test_a_run_of_a_name_judges_its_own_weights(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(TWINS + NAMES)
    done = run_suite(tmp_path, "--model", "gpt2", "--subject", "bridge")
    assert done.code == 0
    assert {v.model for v in done.records.verdicts} == {"gpt2"}
    assert {v.evidence for v in done.records.verdicts} == {"real"}
    assert len(done.records.verdicts) == len(CHECKS)
    assert [n.evidence for n in done.records.names] == ["real"]
