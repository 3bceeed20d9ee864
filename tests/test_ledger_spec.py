"""Reading ``expected_failures.toml``: what it makes models expect, and what can be wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import tomlkit
from fakes import LINK, ROOT, defect, ledger_toml, shows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.errors import SpecError
from conformance.spec import Defect, Showing, load_spec, relisted
from conformance.spec.lines import places

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conformance.spec import Spec

    Load = Callable[..., Spec]

MODELS = """schema = 1
ledger = "known.toml"
[[model]]
id = "one"
architecture = "GPT2LMHeadModel"
subjects = ["bridge"]
source = {path = "x"}
[[model]]
id = "other"
architecture = "LlamaForCausalLM"
source = {path = "x"}
"""
BOTH = ledger_toml(
    defect(
        shows("logits", "one", "o*r", first_divergence="logits"),
        shows("*", "one"),
        transformer_lens=">=3.9",
    )
)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(ledger: str, models: str = MODELS) -> Spec:
        tmp_path.joinpath("models.toml").write_text(models)
        tmp_path.joinpath("known.toml").write_text(ledger)
        return load_spec(tmp_path / "models.toml")

    return write_and_load


def failure(load: Load, ledger: str, models: str = MODELS) -> str:
    with pytest.raises(SpecError) as caught:
        load(ledger, models)
    return caught.value.message


def test_a_defect_is_listed_once_with_everywhere_it_shows(load: Load) -> None:
    loaded = load(BOTH)
    first, other = loaded.models
    assert [entry.check for entry in first.expected_failures] == ["logits", "*"]
    (entry,) = other.expected_failures
    assert entry.model_dump(exclude_none=True) == {
        "subject": "bridge",
        "check": "logits",
        "reason": "known",
        "link": LINK,
        "first_divergence": "logits",
        "transformer_lens": ">=3.9",
        "at": "known.toml:8",
    }
    assert loaded.ledger is not None
    assert len(loaded.ledger.sha256) == 64


def test_an_architecture_stands_for_its_models_that_run_the_subject(load: Load) -> None:
    place = {
        "subject": "hooked",
        "check": "loss",
        "architectures": ["LlamaForCausalLM"],
        "models": ["o*"],
    }
    first, other = load(ledger_toml(defect(place, dtype=["bfloat16"]))).models
    assert first.expected_failures == (), "it does not run hooked"
    (entry,) = other.expected_failures
    assert entry.dtype == ("bfloat16",)


def test_without_a_ledger_nothing_is_expected(load: Load, tmp_path: Path) -> None:
    loaded = load(BOTH, MODELS.replace('ledger = "known.toml"\n', ""))
    assert loaded.ledger is None, "a file beside that models.toml does not name is not read"
    assert all(not model.expected_failures for model in loaded.models)
    empty = load("schema = 1\n")
    assert empty.ledger is not None
    assert empty.ledger.defects == ()


def place(**fields: object) -> str:
    return ledger_toml(defect({**shows("loss", "one"), **fields}))


@pytest.mark.parametrize(
    ("ledger", "where", "said"),
    [
        (BOTH.replace('"o*r"', '"o*x"'), "line 8: defect[0].shows[0].models", "no model 'o*x'"),
        (BOTH.replace('"logits", m', '"logit", m'), "line 8: defect[0].shows[0].check", "did"),
        (BOTH.replace('"*"', '"los"'), "line 9: defect[0].shows[1].check", 'did you mean "loss"'),
        (place(subject="x"), "line 7: defect[0].shows[0].subject", "unknown subject 'x'"),
        (place(subject="hooked"), "line 7: defect[0].shows[0]", "one does not run 'hooked'"),
        (place(colour="red"), "line 7: defect[0].shows[0].colour", "unknown key"),
        (
            place(architectures=["LlamaForCausal"]),
            "[0].architectures",
            'did you mean "LlamaForCausalLM"',
        ),
        (place(kinds=[]), "line 7: defect[0].shows[0].kinds", "is empty"),
        (BOTH.replace('reason = "known"\n', ""), "line 3: defect[0].reason", "missing"),
        (BOTH.replace('"known"', '""'), "line 3: defect[0].reason", "is empty"),
        (BOTH.replace(f'link = "{LINK}"\n', ""), "defect[0].link", "missing"),
        (BOTH.replace(LINK, "docs/9.md"), "line 3: defect[0].link", "no file 'docs/9.md'"),
        (BOTH.replace(LINK, "/etc/hosts"), "defect[0].link", "neither a path from here"),
        (BOTH.replace(LINK, "http:///x"), "defect[0].link", "is not an address"),
        (BOTH.replace(LINK, "."), "defect[0].link", "no file '.'"),
        (BOTH.replace(">=3.9", "4.x"), "defect[0].transformer_lens", "version specifier"),
        (
            ledger_toml(defect(shows("loss", "one"), dtype="bfloat16")),
            "defect[0].dtype",
            "must be an array",
        ),
        (ledger_toml(defect(shows("loss", "one"), dtype=["int4"])), "defect[0].dtype", "one of"),
        (BOTH.replace("[[defect]]", "[defect]"), "defect: ", "[[defect]], with two brackets"),
        (BOTH.replace("schema = 1\n", ""), "schema: ", "schema = 1"),
        (BOTH.replace("schema = 1", "schema = 1\nmodels = []"), "models: ", "unknown key"),
        (
            ledger_toml(defect(shows("loss", "one")), defect(shows("loss", "o*"), reason="new")),
            "line 14: defect[1].shows[0]",
            "repeats an expected failure of one: loss of bridge, as known.toml:7",
        ),
        (
            ledger_toml(defect({"subject": "bridge", "check": "loss"})),
            "line 7: defect[0].shows[0]",
            "names no model",
        ),
    ],
)
def test_problems_are_named_with_their_line(load: Load, ledger: str, where: str, said: str) -> None:
    assert ledger != BOTH
    message = failure(load, ledger)
    assert "known.toml: 1 problem\n" in message
    assert where in message
    assert said in message


def test_problems_of_both_files_are_told_at_once(load: Load) -> None:
    message = failure(load, BOTH.replace("reason", "why"), MODELS.replace("path", "pth"))
    assert "models.toml: 2 problems" in message
    assert "known.toml: 2 problems" in message


@pytest.mark.parametrize("text", ["schema = ", None])
def test_a_ledger_that_cannot_be_read_is_one_problem_of_many(
    load: Load, tmp_path: Path, text: str | None
) -> None:
    models = MODELS.replace("known.toml", "known.toml" if text else "absent.toml")
    message = failure(load, text or "", models.replace("path", "pth"))
    assert "models.toml: 3 problems" in message
    assert "ledger: " in message


@pytest.mark.parametrize("value", ["1", "[]", '""'])
def test_the_name_of_a_ledger_is_text(load: Load, value: str) -> None:
    assert 'write ledger = "' in failure(load, BOTH, MODELS.replace('"known.toml"', value))


def test_what_belongs_into_the_ledger_is_told_to_go_there(load: Load) -> None:
    old = MODELS + "expected_failures = []\n[[defect]]\n"
    message = failure(load, BOTH, old)
    assert "models.toml: 2 problems" in message
    assert message.count('ledger = "expected_failures.toml"') == 2


@pytest.mark.parametrize("link", ["docs/1.md", "docs/1.md#cause", "org/repo#12", "http://x.org"])
def test_links(load: Load, tmp_path: Path, link: str) -> None:
    tmp_path.joinpath("docs").mkdir()
    tmp_path.joinpath("docs", "1.md").touch()
    (entry, _), _ = (model.expected_failures for model in load(BOTH.replace(LINK, link)).models)
    assert entry.link == link


def test_another_text_of_the_ledger_for_the_same_models(load: Load) -> None:
    loaded = load(BOTH)
    again = relisted(loaded, ledger_toml(defect(shows("loss", "one"))))
    assert [[e.check for e in m.expected_failures] for m in again.models] == [["loss"], []]
    with pytest.raises(SpecError):
        relisted(loaded, ledger_toml(defect(shows("loss", "none"))))


def test_the_shipped_ledger_is_valid_and_every_line_is_known() -> None:
    ledger = load_spec(ROOT / "models.toml").ledger
    assert ledger is not None
    text = ledger.path.read_text().splitlines()
    for position, entry in enumerate(ledger.defects):
        assert (ROOT / entry.link).is_file(), entry.link
        for number, showing in enumerate(entry.shows):
            line = ledger.line(position, number)
            assert line is not None
            assert text[line - 1].lstrip().startswith("{")
            assert f'check = "{showing.check}"' in text[line - 1]


KEYS = st.sampled_from(
    [*Defect.model_fields, *Showing.model_fields, "bridge", "loss", "*", "one", ">=4", LINK, ""]
)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-9, 9), KEYS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["schema", "defect", "else"]), VALUES))
def test_whatever_is_written_is_a_ledger_or_a_spec_error(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    folder.joinpath("models.toml").write_text(MODELS)
    folder.joinpath("known.toml").write_text(tomlkit.dumps({"schema": 1, **top}))
    said = "known.toml: 1 problem\n"
    try:
        assert load_spec(folder / "models.toml").ledger is not None
    except SpecError as error:
        said = error.message
    assert re.search(r"known.toml: \d+ problems?\n", said), "it is valid TOML, so they are listed"


NOISE = st.sampled_from(
    [
        "# [[defect]] in a comment\n",
        'reason = "[[defect]] {"\n',
        "link = '[[defect]] \"'\n",
        'note = """\n[[defect]]\n\\""" {\n"""\n',
        "other = '''\n[[defect]]\n'''\n",
        "\n",
        "dtype = [\n]\n",
        "inline = { a = [ { b = 1 } ] }\n",
    ]
)


@given(st.lists(st.tuples(st.lists(NOISE, unique=True), st.integers(0, 3))))
def test_lines_of_tables_are_found_whatever_stands_between(
    tables: list[tuple[list[str], int]],
) -> None:
    text, wanted = "# first\n", []
    for noise, rows in tables:
        header = text.count("\n") + 1
        text += '[["defect"]]\n' if rows == 2 else "  [[ defect ]] # here\n"
        text += "".join(noise) + "shows = [\n"
        lines = [text.count("\n") + 1 + row for row in range(rows)]
        text += "  { models = [ 'a' ], k = '}' }, # {\n" * rows + "]\n"
        wanted.append((header, lines))
    assert [(found.line, found.rows) for found in places(text, "defect")] == wanted
