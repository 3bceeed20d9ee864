"""Every line that the harness writes obeys the schema that it ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes import models_toml, run_suite
from hypothesis import given
from made_runs import few, obeys_the_schema
from test_records import all_verdicts
from typer.testing import CliRunner

import conformance.schema
from conformance.cli import app
from conformance.records import Verdict, to_json


@few
@given(all_verdicts)
def test_every_verdict_obeys_it(verdict: Verdict) -> None:
    assert obeys_the_schema(to_json(verdict))


def test_every_line_of_a_run_obeys_it(tmp_path: Path) -> None:
    names = ["ok", "sub.fail", "sub.segv", "sub.na", "get.error"]
    tmp_path.joinpath("models.toml").write_text(models_toml(names))
    done = run_suite(tmp_path, "--check", "weights", "--check", "loss")
    lines = done.folder.joinpath("conformance-out", "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["header", *["verdict"] * 10, "footer"]
    assert all(map(obeys_the_schema, lines))


LINE = json.loads(to_json(Verdict("m", "bridge", "logits", "passed")))


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "maybe"},
        {"model": 1},
        {"duration_s": "long"},
        {"kind": "verdicts"},
        {"more": 1},
        {"worst": [{"site": "x"}]},
        {"verdict": {"exact": {"compared": "many"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_no_run_writes_does_not(change: dict[str, Any]) -> None:
    schema = conformance.schema.records_schema()
    assert jsonschema.Draft202012Validator(schema).is_valid(LINE)
    assert not jsonschema.Draft202012Validator(schema).is_valid({**LINE, **change})


@pytest.mark.parametrize("field", ["model", "subject", "check", "outcome", "kind"])
def test_what_identifies_a_verdict_is_required(field: str) -> None:
    schema = conformance.schema.records_schema()
    line = {name: value for name, value in LINE.items() if name != field}
    assert not jsonschema.Draft202012Validator(schema).is_valid(line)


def test_the_file_that_is_shipped_is_the_schema() -> None:
    file = Path(conformance.schema.__file__).with_name("records.schema.json")
    told = "run: conformance schema > conformance/schema/records.schema.json"
    assert json.loads(file.read_text()) == conformance.schema.records_schema(), told


def test_the_command_prints_it() -> None:
    done = CliRunner().invoke(app, ["schema"])
    assert done.exit_code == 0
    assert json.loads(done.output) == conformance.schema.records_schema()
