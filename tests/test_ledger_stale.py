"""What makes an entry of the ledger stale, and what proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fakes import LINK, defect, ledger_toml, models_toml, shows

from conformance.checks.names import CHECKS
from conformance.ledger.stale import divided, merged, stale
from conformance.records import Footer, Header, Records, Stale, Verdict, read, to_json
from conformance.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conformance.spec import Spec

    Load = Callable[..., Spec]

AT = ("blocks.0.attn.z", ("attn.z",))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(*places: Mapping[str, object], **fields: object) -> Spec:
        text = models_toml(["a", "b", "c"], top='ledger = "known.toml"', subjects='["bridge"]')
        tmp_path.joinpath("models.toml").write_text(text)
        tmp_path.joinpath("known.toml").write_text(ledger_toml(defect(*places, **fields)))
        return load_spec(tmp_path / "models.toml")

    return write_and_load


def verdict(model: str, outcome: str = "xfailed", check: str = "loss", **fields: Any) -> Verdict:
    if outcome in ("failed", "xfailed"):
        first, kinds = fields.pop("at", AT)
        fields = {"first_divergence": first, "metrics": {"failing": list(kinds)}, **fields}
    return Verdict(model, "bridge", check, outcome, **fields)  # type: ignore[arg-type]


def run_of(*verdicts: Verdict, version: str = "4.3.0", started: str = "2026") -> Records:
    versions = {"transformer-lens": version, "transformers": "5.0"}
    return Records(Header(started, versions, "Linux", {}, "models.toml", "0"), verdicts, None)


def found(spec: Spec, *verdicts: Verdict, **more: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.what, one.names) for one in stale(spec, [run_of(*verdicts, **more)])]


def test_what_nobody_shows_is_stale_and_named_with_its_line(load: Load) -> None:
    spec = load(shows("loss", "a", "b"), shows("loss", "a", first_divergence="embed"))
    (one,) = stale(spec, [run_of(verdict("a"), verdict("b"))])
    assert one == Stale("known.toml", 8, "bridge", "loss", LINK, "entry", ("a",))


def test_what_passes_is_stale(load: Load) -> None:
    spec = load(shows("loss", "a", "b"))
    assert found(spec, verdict("a", "passed"), verdict("b", "xpassed")) == [("entry", ("a", "b"))]
    assert found(spec, verdict("a", "passed"), verdict("b")) == [("models", ("a",))]
    gone = verdict("a", "not_applicable", metrics={"not_applicable": {"all": "no mask"}})
    assert found(spec, gone, verdict("b")) == [("models", ("a",))]


def test_kinds_that_nobody_shows_are_stale(load: Load) -> None:
    spec = load(shows("loss", "a", "b", kinds=["attn.z", "embed", "resid_mid"]))
    both = (verdict("a"), verdict("b", at=("embed", ("attn.z", "embed"))))
    assert found(spec, *both) == [("kinds", ("resid_mid",))]
    # Each in part is all that is asked: one line lists models that differ a little.
    assert found(spec, both[1]) == [], "a was not run"
    other = verdict("a", "failed", at=("ln1", ("ln1",)))
    assert found(spec, other, both[1]) == [], "a fails in another way: who knows what comes after"


@pytest.mark.parametrize("outcome", ["error", "crashed", "timeout", "oom", "skipped", None])
def test_what_was_not_judged_proves_nothing(load: Load, outcome: str | None) -> None:
    spec = load(shows("loss", "a", "b"))
    rest = [verdict("b", outcome)] if outcome else []
    assert found(spec, verdict("a", "passed"), *rest) == [("models", ("a",))]
    assert found(load(shows("loss", "*")), verdict("a", "passed"), *rest) == []
    assert found(spec, *rest) == []


def test_a_subject_that_is_not_there_proves_nothing(load: Load) -> None:
    spec = load(shows("loss", "a"))
    assert found(spec, verdict("a", "not_applicable", reason="no such subject")) == []


def test_a_failure_of_another_kind_is_no_sign_of_repair(load: Load) -> None:
    spec = load(shows("loss", "a", first_divergence="embed"))
    assert found(spec, verdict("a", "failed")) == []


def test_an_earlier_failure_of_another_entry_hides_nothing(load: Load) -> None:
    spec = load(
        shows("loss", "a", first_divergence="embed", kinds=["embed"]),
        shows("loss", "a", first_divergence="logits", kinds=["logits"]),
    )
    assert found(spec, verdict("a", at=("embed", ("embed", "logits")))) == []
    assert found(spec, verdict("a", at=("embed", ("embed",)))) == [("entry", ("a",))]


def test_under_other_versions_or_dtypes_nothing_is_stale(load: Load) -> None:
    spec = load(shows("loss", "a"), transformer_lens="<4")
    assert found(spec, verdict("a", "passed")) == []
    assert found(spec, verdict("a", "passed"), version="3.9.0") == [("entry", ("a",))]
    assert found(load(shows("loss", "a"), dtype=["float16"]), verdict("a", "passed")) == []


def test_an_entry_of_a_dtype_is_stale_where_that_was_run(load: Load) -> None:
    spec = load(shows("loss", "a"), dtype=["bfloat16"])
    narrow = run_of(verdict("a", "passed", dtype="bfloat16"))
    wide = run_of(verdict("a", "passed", dtype="float32"), started="2027")
    assert [one.what for one in stale(spec, [narrow])] == ["entry"]
    assert stale(spec, [wide]) == ()
    shown = run_of(verdict("a", dtype="bfloat16"))
    assert stale(spec, [shown, wide]) == ()


def test_runs_in_different_dtypes_do_not_hide_each_other(load: Load) -> None:
    runs = [run_of(verdict("a"), started="2026"), run_of(verdict("a", "passed"), started="2027")]
    narrow = replace(runs[1], header=replace(runs[1].header, dtype="bfloat16"))
    assert len(merged([runs[0], narrow])) == 2
    assert stale(load(shows("loss", "a")), [runs[0], narrow]) == ()


def test_the_ledger_decides_as_it_is_now(load: Load) -> None:
    spec = load(shows("loss", "a"))
    assert found(spec, verdict("a", "failed")) == [], "listed after the run was made"


def test_an_entry_of_every_check_wants_every_check(load: Load) -> None:
    spec = load(shows("*", "a"))
    every = [verdict("a", check=check) for check in CHECKS]
    assert found(spec, *every) == []
    one_passes = [verdict("a", "xpassed", check=CHECKS[0]), *every[1:]]
    assert found(spec, *one_passes) == [("entry", ("a",))]
    assert found(spec, *every[1:]) == []


def test_what_any_version_shows_is_not_stale(load: Load) -> None:
    spec = load(shows("loss", "a"))
    old, new = run_of(verdict("a"), version="3.9.0"), run_of(verdict("a", "xpassed"))
    assert stale(spec, [new, old]) == ()
    ((_, _, name, shown, gone),) = divided(spec, merged([new, old]))
    versions = [run.versions["transformer-lens"] for run in (shown, gone)]
    assert (name, versions) == ("a", ["3.9.0", "4.3.0"])
    absent = run_of(verdict("a", "not_applicable"), version="3.9.0")
    assert [one.what for one in stale(spec, [new, absent])] == ["entry"]


def test_of_two_runs_of_one_version_the_later_counts(load: Load) -> None:
    spec = load(shows("loss", "a"))
    first, second = run_of(verdict("a", "failed")), run_of(verdict("a", "passed"), started="2027")
    assert len(stale(spec, [second, first])) == 1
    assert len(merged([first, second])) == 1


def test_without_a_ledger_nothing_is_stale(load: Load) -> None:
    spec = load(shows("loss", "a")).model_copy(update={"ledger": None})
    assert found(spec, verdict("a", "passed")) == []


def test_records_keep_what_was_stale(tmp_path: Path) -> None:
    one = Stale("known.toml", None, "bridge", "*", "docs/x.md", "kinds", ("embed",))
    footer = Footer("2026", 1, 1.0, {}, stale=(one,))
    file = tmp_path / "records.jsonl"
    file.write_text("".join(to_json(line) + "\n" for line in (run_of().header, footer)))
    assert read(file).stale == (one,)
