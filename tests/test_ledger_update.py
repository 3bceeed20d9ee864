"""``conformance ledger``: what it proposes, what it writes, and what it never does."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from fakes import LINK, defect, ledger_toml, models_toml, shows
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from conformance.cli import app
from conformance.errors import SpecError
from conformance.ledger.command import changes
from conformance.ledger.judging import applicable
from conformance.ledger.stale import merged, stale
from conformance.records import Footer, Header, Records, Verdict, to_json
from conformance.spec import load_spec, relisted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MODELS = ("a", "ab", "c")
KINDS = ("attn.z", "embed", "logits")
COMMENTED = f"""# the head
schema = 1

# --- first section ---

# about the first
[[defect]]
link = "{LINK}"  # a link
reason = "known"
shows = [
  # the first rows
  {{ subject = "bridge", check = "loss", kinds = ["attn.z", "embed"], models = ["a", "ab"] }},  # x
  {{ subject = "bridge", check = "logits", models = ["a"] }},

  # the last
  {{ subject = "bridge", check = "heads", models = ["c"] }},
]

# --- second section ---

[[defect]]
link = "{LINK}"
reason = "also"
shows = [{{ subject = "bridge", check = "hooks", models = ["a"] }}]

# about the third
[[defect]]
link = "{LINK}"
reason = "third"
shows = [{{ subject = "bridge", check = "lens", models = ["a"] }}]
# the end
"""


def verdict(
    model: str, check: str, *kinds: str, outcome: str = "failed", first: str | None = None
) -> Verdict:
    if not kinds:
        return Verdict(model, "bridge", check, "passed")
    made: dict[str, Any] = {"outcome": outcome, "metrics": {"failing": sorted(kinds)}}
    return Verdict(model, "bridge", check, **made, first_divergence=first or min(kinds))


def run_of(verdicts: Sequence[Verdict], version: str = "4.3.0") -> Records:
    header = Header("2026", {"transformer-lens": version}, "Linux", {}, "models.toml", "0")
    return Records(header, tuple(verdicts), None)


def write(folder: Path, ledger: str, *runs: Records) -> Path:
    text = models_toml(MODELS, top='ledger = "known.toml"')
    folder.joinpath("models.toml").write_text(text)
    folder.joinpath("known.toml").write_text(ledger)
    for number, run in enumerate(runs):
        records: list[Header | Verdict | Footer] = [run.header, *run.verdicts]
        lines = [to_json(one) + "\n" for one in (*records, Footer("2026", 0, 1.0, {}))]
        folder.joinpath(f"{number}.jsonl").write_text("".join(lines))
    return folder / "models.toml"


def conformance(folder: Path, *args: str) -> tuple[int, str, str]:
    command = ["ledger", args[0], "--models", str(folder / "models.toml"), *args[1:]]
    done = CliRunner().invoke(app, command)
    return done.exit_code, done.stdout, done.stderr


def test_comments_and_order_are_kept(tmp_path: Path) -> None:
    run = run_of(
        [
            verdict("a", "loss", "attn.z"),
            verdict("ab", "loss"),
            verdict("a", "logits"),
            verdict("c", "heads", "embed"),
            verdict("a", "hooks"),
            verdict("a", "lens", "embed"),
        ]
    )
    spec = load_spec(write(tmp_path, COMMENTED))
    wanted = (
        COMMENTED.replace('kinds = ["attn.z", "embed"], models = ["a", "ab"]', "KEPT")
        .replace('  { subject = "bridge", check = "logits", models = ["a"] },\n', "")
        .replace("KEPT", 'kinds = ["attn.z"], models = ["a"]')
    )
    second = wanted[wanted.index('[[defect]]\nlink = "https://example.org/1"\nreason = "also"') :]
    second = second[: second.index("\n# about the third")]
    assert changes(spec, COMMENTED, [run]).tightened == wanted.replace(second, "")


def test_a_diff_is_proposed_and_only_what_tightens_is_applied(tmp_path: Path) -> None:
    run = run_of([verdict("a", "loss"), verdict("c", "heads", "embed", "logits")])
    ledger = ledger_toml(defect(shows("loss", "a", "c"), shows("loss", "ab")))
    write(tmp_path, ledger, run)
    records = str(tmp_path / "0.jsonl")
    code, out, _ = conformance(tmp_path, "update", "--records", records)
    assert code == 1
    assert '-  { subject = "bridge", check = "loss", models = ["a", "c"] },\n' in out
    assert '+  { subject = "bridge", check = "loss", models = ["c"] },\n' in out
    assert '+#   { subject = "bridge", check = "heads", first_divergence = "embed", kinds =' in out
    assert tmp_path.joinpath("known.toml").read_text() == ledger

    code, out, err = conformance(tmp_path, "update", "--records", records, "--apply")
    assert code == 1, "what is left needs a person"
    assert "applied to" in err
    assert "not applied: it needs a reason and a link" in err
    after = tmp_path.joinpath("known.toml").read_text()
    assert after == ledger.replace('["a", "c"]', '["c"]')
    assert "# [[defect]]" in out

    code, out, _ = conformance(tmp_path, "update", "--records", records, "--apply")
    assert tmp_path.joinpath("known.toml").read_text() == after
    assert (code, out.count("\n-")) == (1, 0), "no line is taken out any more"


def test_nothing_to_change(tmp_path: Path) -> None:
    run = run_of([verdict("a", "loss", "embed")])
    write(tmp_path, ledger_toml(defect(shows("loss", "a"))), run)
    for more in ([], ["--apply"]):
        records = str(tmp_path / "0.jsonl")
        assert conformance(tmp_path, "update", "--records", records, *more) == (0, "", "")


def test_a_run_cut_short_is_used_and_said_to_be(tmp_path: Path) -> None:
    run = run_of([verdict("a", "loss", "embed")])
    write(tmp_path, ledger_toml(defect(shows("loss", "a"))), run)
    lines = tmp_path.joinpath("0.jsonl").read_text().splitlines(keepends=True)
    tmp_path.joinpath("records.jsonl").write_text("".join(lines[:-1]))
    code, _, err = conformance(tmp_path, "update", "--records", str(tmp_path))
    assert (code, "cut short" in err) == (0, True)


def test_tables_of_their_own_can_be_edited_inline_ones_cannot(tmp_path: Path) -> None:
    runs = [run_of([verdict("a", "loss"), verdict("a", "heads", "embed")])]
    head = f'schema = 1\n[[defect]]\nlink = "{LINK}"\nreason = "r"\n'
    rows = [
        f'[[defect.shows]]\nsubject = "bridge"\ncheck = "{check}"\nmodels = ["a"]\n'
        for check in ("loss", "heads")
    ]
    text = head + "".join(rows)
    assert changes(load_spec(write(tmp_path, text)), text, runs).tightened == head + rows[1]
    row = '{ subject = "bridge", check = "loss", models = ["a"] }'
    inline = f'schema = 1\ndefect = [{{ link = "{LINK}", reason = "r", shows = [{row}] }}]\n'
    with pytest.raises(SpecError, match=r"under a \[\[defect\]\] of their own"):
        changes(load_spec(write(tmp_path, inline)), inline, runs)


def test_a_proposal_is_made_once_and_names_what_expects_otherwise(tmp_path: Path) -> None:
    ledger = ledger_toml(defect(shows("loss", "a", kinds=["embed"], first_divergence="embed")))
    run = run_of([verdict("a", "loss", "embed", "logits")])
    proposed = changes(load_spec(write(tmp_path, ledger)), ledger, [run]).proposed
    assert '#   { subject = "bridge", check = "loss", kinds = ["logits"], models = ["a"] },' in (
        proposed
    )
    assert f"# known.toml:7 expects otherwise of a ({LINK})" in proposed
    assert changes(load_spec(write(tmp_path, proposed)), proposed, [run]).proposed == proposed


def test_an_entry_that_only_one_version_shows_is_for_a_person_to_bound(tmp_path: Path) -> None:
    runs = run_of([verdict("a", "loss", "embed")], "3.9.0"), run_of([verdict("a", "loss")])
    write(tmp_path, ledger_toml(defect(shows("loss", "a"))), *runs)
    both = [word for n in (0, 1) for word in ("--records", str(tmp_path / f"{n}.jsonl"))]
    code, out, err = conformance(tmp_path, "update", *both)
    assert (code, out) == (1, "")
    assert "known.toml:7: a: shown under transformer-lens 3.9.0, not under 4.3.0" in err


def test_check_validates_the_file_alone(tmp_path: Path) -> None:
    write(tmp_path, COMMENTED)
    code, out, _ = conformance(tmp_path, "check")
    assert (code, out) == (0, "known.toml: valid, 3 entries that show in 5 ways\n")
    write(tmp_path, COMMENTED.replace('"c"', '"d"').replace('"also"', '""'))
    code, _, err = conformance(tmp_path, "check")
    assert code == 2
    assert "known.toml: 2 problems" in err


@pytest.mark.parametrize(
    ("text", "message"), [(None, "No such file"), ("", "empty"), ("{}\n", "not a header")]
)
def test_what_is_not_a_run_is_a_usage_error(tmp_path: Path, text: str | None, message: str) -> None:
    write(tmp_path, COMMENTED)
    if text is not None:
        tmp_path.joinpath("records.jsonl").write_text(text)
    records = str(tmp_path / "records.jsonl")
    code, _, err = conformance(tmp_path, "update", "--records", records)
    assert code == 2
    assert message in err


def test_without_a_ledger_there_is_nothing_to_update(tmp_path: Path) -> None:
    tmp_path.joinpath("models.toml").write_text(models_toml(["a"]))
    code, _, err = conformance(tmp_path, "check")
    assert code == 2
    assert 'write ledger = "expected_failures.toml"' in err


# --- whatever stands in the ledger, and whatever was judged ---

NAMES = st.lists(st.sampled_from([*MODELS, "a*", "*"]), min_size=1, max_size=3, unique=True)
PLACES = st.builds(
    lambda check, names, kinds, first: shows(
        check,
        *names,
        **({"kinds": kinds} if kinds else {}),
        **({"first_divergence": first} if first else {}),
    ),
    st.sampled_from(["loss", "heads", "*"]),
    NAMES,
    st.lists(st.sampled_from(KINDS), max_size=2, unique=True),
    st.sampled_from([None, None, *KINDS]),
)
VERDICTS = st.lists(
    st.builds(
        lambda model, check, kinds, expected: verdict(
            model, check, *kinds, outcome="xfailed" if expected else "failed"
        ),
        st.sampled_from(MODELS),
        st.sampled_from(["loss", "heads"]),
        st.lists(st.sampled_from(KINDS), max_size=3, unique=True),
        st.booleans(),
    ),
    max_size=8,
)
LEDGERS = st.lists(
    st.tuples(
        st.lists(PLACES, min_size=1, max_size=3),
        st.sampled_from(["", "\n# a comment\n\n"]),
        st.sampled_from([None, "<4", ">=4"]),
    ),
    max_size=3,
)
RUNS = st.lists(st.builds(run_of, VERDICTS, st.sampled_from(["3.9.0", "4.3.0"])), max_size=3)


def listed(text: str) -> set[tuple[object, ...]]:
    """Every single thing that a ledger expects."""
    return {
        (entry["reason"], row["subject"], row["check"], row.get("first_divergence"), model, kind)
        for entry in tomllib.loads(text).get("defect", [])
        for row in entry["shows"]
        for model in row["models"]
        for kind in row.get("kinds", [None])
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ledger=LEDGERS, runs=RUNS)
def test_updating_tightens_once_and_never_loosens(
    ledger: list[Any], runs: list[Records], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = ledger_toml(
        *(
            comment
            + defect(*places, reason=f"r{n}", **({"transformer_lens": lens} if lens else {}))
            for n, (places, comment, lens) in enumerate(ledger)
        )
    )
    folder = tmp_path_factory.mktemp("property")
    try:
        spec = load_spec(write(folder, text))
    except SpecError as error:
        assume("repeats an expected failure" not in str(error))
        raise
    found = changes(spec, text, runs)
    assert listed(found.tightened) <= listed(text)
    assert found.tightened.count("# a comment") == text.count("# a comment")
    assert listed(found.proposed) == listed(found.tightened), "what is proposed is a comment"

    after = relisted(spec, found.tightened)
    assert stale(after, runs) == ()
    again = changes(after, found.tightened, runs)
    assert again.tightened == found.tightened
    assert again.proposed == found.proposed
    assert changes(relisted(spec, found.proposed), found.proposed, runs).proposed == found.proposed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(places=st.lists(PLACES, max_size=2), verdicts=VERDICTS)
def test_a_proposal_that_a_person_accepts_explains_every_failure(
    places: list[dict[str, object]],
    verdicts: list[Verdict],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = ledger_toml(*(defect(place, reason=f"r{n}") for n, place in enumerate(places)))
    folder = tmp_path_factory.mktemp("property")
    try:
        spec = load_spec(write(folder, text))
    except SpecError as error:
        assume("repeats an expected failure" not in str(error))
        raise
    runs = [run_of(verdicts)]
    found = changes(spec, text, runs)
    block = found.proposed.removeprefix(found.tightened.rstrip())
    lines = [line.removeprefix("# ") for line in block.splitlines()]
    if "[[defect]]" not in lines:
        assert not block.strip()
        return
    bare = "\n".join(lines[lines.index("[[defect]]") :]) + "\n"
    with pytest.raises(SpecError, match="is empty"):
        relisted(spec, f"{found.tightened}\n{bare}")
    given_reasons = bare.replace('link = ""', f'link = "{LINK}"').replace('""', '"why"')
    accepted = relisted(spec, f"{found.tightened}\n{given_reasons}")
    models = {model.id: model for model in accepted.models}
    for run in merged(runs):
        for judged in run.judged(accepted).values():
            entries = applicable(judged, models[judged.model], run.versions)
            assert judged.outcome != "failed", (judged, entries)
