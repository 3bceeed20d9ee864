"""The coverage gate: with invented lists, and once with those of the installed library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakes import ROOT, fake_model
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from conformance import coverage as covering
from conformance.cli import app
from conformance.coverage import Supported, coverage, installed, text
from conformance.spec import Gap, Name, Spec, load_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUPPORTED = Supported("4.3.0", frozenset({"GPT2LMHeadModel"}), frozenset({"gpt2"}))
GPT2 = Name(hub="gpt2", architecture="GPT2LMHeadModel", twin="gpt2-twin")


def spec(
    *gaps: Mapping[str, Any], names: Iterable[Name] = (GPT2,), architectures: Iterable[str] = ()
) -> Spec:
    models = [fake_model("gpt2-twin")]
    models += [fake_model(f"m{i}", architecture=a) for i, a in enumerate(architectures)]
    return Spec(
        models=tuple(models),
        subjects={},
        path=Path("models.toml"),
        sha256="0" * 64,
        names=tuple(names),
        gaps=tuple(Gap.model_validate({"reason": "why", **gap}) for gap in gaps),
    )


def supported(*architectures: str, names: Iterable[str] = (), version: str = "4.3.0") -> Supported:
    return Supported(
        version,
        SUPPORTED.architectures.union(architectures),
        SUPPORTED.names.union(names),
    )


def test_what_is_covered_needs_no_gap() -> None:
    found = coverage(spec(), SUPPORTED)
    assert found.ok
    assert found.architectures.covered == ("GPT2LMHeadModel",)
    assert found.names.covered == ("gpt2",)


def test_what_is_not_covered_fails_until_it_has_a_reason() -> None:
    library = supported("NewForCausalLM", names=["org/new", "org/newer"])
    found = coverage(spec(), library)
    assert not found.ok
    assert found.architectures.missing == ("NewForCausalLM",)
    assert found.names.missing == ("org/new", "org/newer")
    gaps = ({"architectures": ["NewForCausalLM"]}, {"names": ["org/*"]})
    found = coverage(spec(*gaps), library)
    assert found.ok
    assert found.architectures.excused == {"why": ("NewForCausalLM",)}
    assert found.names.excused == {"why": ("org/new", "org/newer")}


def test_a_name_that_is_not_judged_states_its_own_reason() -> None:
    name = Name(hub="org/new", architecture="neel", not_judged="own format")
    found = coverage(spec(names=[GPT2, name]), supported(names=["org/new"]))
    assert found.ok
    assert found.names.excused == {"own format": ("org/new",)}
    assert found.names.covered == ("gpt2",)


def test_entries_that_cover_nothing_are_reported() -> None:
    names = [
        GPT2,
        Name(hub="org/gone", architecture="GPT2LMHeadModel", twin="gpt2-twin"),
        Name(hub="org/gone-too", architecture="neel", not_judged="own format"),
    ]
    entries: dict[str, Any] = {"names": names, "architectures": ["OldForCausalLM"]}
    found = coverage(spec(**entries), SUPPORTED)
    assert found.architectures.empty == ("OldForCausalLM",)
    assert found.names.empty == ("org/gone", "org/gone-too")
    gaps = ({"architectures": ["Old*"]}, {"names": ["org/gone*"]})
    assert coverage(spec(*gaps, **entries), SUPPORTED).ok


@pytest.mark.parametrize("glob", ["GPT2LMHeadModel", "Nothing*"])
def test_a_gap_that_excuses_nothing_is_stale(glob: str) -> None:
    found = coverage(spec({"architectures": [glob]}), SUPPORTED)
    assert found.architectures.stale == (glob,)
    assert not found.ok


def test_each_glob_of_a_gap_has_to_be_of_use() -> None:
    gap = {"architectures": ["NewForCausalLM", "Nothing*"]}
    found = coverage(spec(gap), supported("NewForCausalLM"))
    assert found.architectures.stale == ("Nothing*",)


@pytest.mark.parametrize(("version", "missing"), [("3.9.0", ()), ("4.3.0", ("NewForCausalLM",))])
def test_a_gap_of_another_version_neither_excuses_nor_is_stale(
    version: str, missing: tuple[str, ...]
) -> None:
    gap = {"architectures": ["NewForCausalLM"], "transformer_lens": "<4"}
    found = coverage(spec(gap), supported("NewForCausalLM", version=version))
    assert (found.architectures.missing, found.architectures.stale) == (missing, ())


ITEMS = st.frozensets(st.sampled_from([f"A{i}" for i in range(6)]))


@given(ITEMS, ITEMS, ITEMS)
def test_everything_is_accounted_for_once(
    library: frozenset[str], covered: frozenset[str], excused: frozenset[str]
) -> None:
    gaps = [{"architectures": sorted(excused)}] if excused else []
    found = coverage(
        spec(*gaps, architectures=sorted(covered)), Supported("4.3.0", library, frozenset())
    ).architectures
    reasoned = [item for those in found.excused.values() for item in those]
    once = [*found.covered, *found.missing, *found.empty, *reasoned]
    assert sorted(once) == sorted(library | covered | {"GPT2LMHeadModel"})
    assert set(found.missing).isdisjoint(excused)
    assert set(found.stale) == excused - (library ^ {*covered, "GPT2LMHeadModel"})


def test_the_text_ends_with_what_is_to_be_done() -> None:
    gap = {"names": ["nothing*"]}
    entries: dict[str, Any] = {"architectures": ["OldForCausalLM"]}
    found = coverage(spec(gap, **entries), supported("NewForCausalLM"))
    said = text(found)
    assert "architectures: 2 supported, 1 covered, 0 not and with a reason, 1 without" in said
    for problem in ("NewForCausalLM", "OldForCausalLM", "nothing*"):
        assert f"\n    {problem}" in said
    assert all(advice in said for advice in ("add a [[model]]", "correct or remove", "[[gap]]"))
    assert said.endswith("models.toml does not cover what it should")
    assert max(map(len, said.splitlines())) <= 100


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(
        'schema = 1\n[[model]]\nid = "g"\narchitecture = "GPT2LMHeadModel"\n'
        'source = {twin = "gpt2"}\n[[name]]\nhub = "gpt2"\narchitecture = "GPT2LMHeadModel"\n'
        'twin = "g"\n'
    )
    command = ["coverage", "--models", str(tmp_path / "models.toml")]
    monkeypatch.setattr(covering, "installed", lambda: SUPPORTED)
    good = CliRunner().invoke(app, command)
    assert (good.exit_code, good.output.splitlines()[-1]) == (0, "every gap has a reason")
    monkeypatch.setattr(covering, "installed", lambda: supported("NewForCausalLM"))
    bad = CliRunner().invoke(app, [*command, "--json"])
    assert bad.exit_code == 1
    said = json.loads(bad.output)
    assert (said["ok"], said["architectures"]["missing"]) == (False, ["NewForCausalLM"])
    assert CliRunner().invoke(app, ["coverage", "--models", "nowhere"]).exit_code == 2


def test_the_installed_library_is_covered() -> None:
    found = coverage(load_spec(ROOT / "models.toml"), installed())
    assert found.ok, text(found)
    assert found.architectures.supported > 100
    assert found.names.supported > 200
