"""``conformance prove --causes``: how often the right cause is named."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from conformance.cli import app
from conformance.errors import ConformanceError
from conformance.prove.causes import Told, enough, summary

if TYPE_CHECKING:
    from pathlib import Path

_TOLD = Told(
    model="gpt2-twin",
    subject="bridge",
    fault="norm_eps_tenfold",
    site="blocks.1.ln1",
    causes=(("norm_eps", "eps is 1e-4"),),
    formula=True,
    named=True,
    wrong=(),
    duration_s=0.5,
)


def test_four_of_five_are_enough_and_one_wrong_is_too_many() -> None:
    silent = dataclasses.replace(_TOLD, named=False, causes=())
    hook = dataclasses.replace(_TOLD, formula=False, named=False, causes=())
    wrong = dataclasses.replace(_TOLD, wrong=("activation",))
    assert enough([*[_TOLD] * 4, silent, hook])
    assert not enough([*[_TOLD] * 3, silent])
    assert not enough([*[_TOLD] * 99, wrong])
    with pytest.raises(ConformanceError, match="no fault was diagnosed"):
        enough([])
    assert summary([_TOLD, silent, wrong, hook])[1:4] == [
        "no cause named: norm_eps_tenfold on gpt2-twin bridge, at blocks.1.ln1",
        "WRONG: activation: norm_eps_tenfold on gpt2-twin bridge, at blocks.1.ln1",
        "causes of formula faults: 2 of 3 named",
    ]


_MODELS = """
schema = 1
[[model]]
id = "small"
architecture = "GPT2LMHeadModel"
source = { twin = "gpt2" }
prompts = ["sixteen", "padded_left"]
"""


def test_faults_are_diagnosed_and_written(
    tmp_path: Path, twin_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFORMANCE_CACHE", str(twin_cache))
    models = tmp_path / "models.toml"
    models.write_text(_MODELS)
    args = ["prove", "--causes", "--models", str(models), "--subject", "bridge", "-n", "1"]
    faults = ["--fault", "norm_eps_tenfold", "--fault", "W_Q_row"]
    result = CliRunner().invoke(app, [*args, *faults, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "1 of 1 causes named" in result.output
    lines = (tmp_path / "causes.jsonl").read_text().splitlines()
    header, *told, footer = map(json.loads, lines)
    assert (header["kind"], footer["kind"], footer["exit_code"]) == ("header", "footer", 0)
    assert {t["fault"]: t["named"] for t in told} == {"norm_eps_tenfold": True, "W_Q_row": False}
    assert told[0]["causes"][0][0] == "norm_eps"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--causes", "--seeds", "2"), "--seeds judges ports without"),
        (("--every", "--cover", "1"), "--every leaves no port out"),
    ],
)
def test_options_that_do_not_go_together_are_told(args: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["prove", *args])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
