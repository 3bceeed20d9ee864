"""The command line, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fakes import (
    Finished,
    defect,
    environment,
    heed_interrupts,
    ledger_toml,
    models_toml,
    run,
    shows,
)
from typer.testing import CliRunner

from conformance.checks.names import CHECKS
from conformance.cli import app
from conformance.records import read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fakes import Eventually


def write(folder: Path, names: Sequence[str], extra: str = "", **more: str) -> Path:
    folder.joinpath("models.toml").write_text(models_toml(names, extra, **more))
    return folder


def conformance(folder: Path, *args: str, **changes: str) -> Finished:
    return run(folder, sys.executable, "-m", "conformance", *args, **changes)


def test_a_run_shows_progress_a_table_and_the_records(tmp_path: Path) -> None:
    folder = write(tmp_path, ["ok", "sub.fail", "sub.half"])
    done = conformance(folder, "run", "--check", "weights", "--check", "loss", COLUMNS="80")
    assert done.code == 1
    lines = [line.rstrip() for line in done.output.splitlines()]
    assert lines[:4] == [
        "6 verdicts to reach on 3 models",
        "ok bridge: pass (2 checks)",
        "sub.fail bridge: FAIL (2 checks)",
        "sub.half bridge: weights pass, loss CRASH",
    ]
    rows = [line.split() for line in lines]
    assert ["model", "subject", "weights", "loss"] in rows
    assert ["sub.half", "bridge", "pass", "CRASH"] in rows
    assert "FAIL: sub.fail / bridge / loss (GPT2LMHeadModel, twin weights, in float32)" in lines
    assert "6 verdicts: 3 passed, 2 failed, 1 crashed" in lines
    assert lines[-2:] == [
        "records: conformance-out/records.jsonl",
        "report: conformance-out/report/index.html",
    ]
    assert "\x1b" not in done.output
    # Nothing but the records: no cache, no byproducts of plugins.
    assert {path.name for path in folder.iterdir()} == {"models.toml", "conformance-out"}


def test_workers_and_junit(tmp_path: Path) -> None:
    folder = write(tmp_path, ["ok-1", "ok-2", "get.error"])
    done = conformance(
        folder, "run", "-n", "2", "--out", "deep/out", "--junitxml", "report/junit.xml"
    )
    assert done.code == 3
    assert f"get.error bridge: ERROR ({len(CHECKS)} checks)" in done.output
    assert "3 models" in done.output
    assert read(folder / "deep" / "out" / "records.jsonl").missing == 0
    assert 'value="get.error"' in folder.joinpath("report", "junit.xml").read_text()


def test_the_configuration_around_does_not_matter(tmp_path: Path) -> None:
    folder = write(tmp_path, ["ok"])
    folder.joinpath("pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    folder.joinpath("conftest.py").write_text("raise RuntimeError\n")
    done = conformance(folder, "run")
    assert done.code == 0, done.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "okk"], "did you mean 'ok'?"),
        (["--models", "absent.toml"], "absent.toml: No such file"),
        (["--subject", "hooked"], "no model chosen lists hooked"),
        (["-n", "many"], "neither a number nor auto"),
        (["--timeout", "0"], "--timeout"),
        (["--chekc", "loss"], "No such option"),
        (["--out", "models.toml"], "write to with --out"),
    ],
)
def test_usage_errors(tmp_path: Path, args: list[str], message: str) -> None:
    done = conformance(write(tmp_path, ["ok"]), "run", *args)
    assert done.code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_defect_of_the_harness_is_shown(tmp_path: Path) -> None:
    tmp_path.joinpath("breaking.py").write_text("def pytest_collection_finish():\n    1 / 0\n")
    done = conformance(
        write(tmp_path, ["ok"]),
        "run",
        PYTEST_PLUGINS="breaking",
        PYTHONPATH=f"{environment()['PYTHONPATH']}:{tmp_path}",
    )
    assert done.code == 3
    assert "ZeroDivisionError" in done.output


def test_an_interrupted_run_says_so(tmp_path: Path, eventually: Eventually) -> None:
    folder = write(tmp_path, ["ok", "sub.fork"])
    noted = tmp_path / "pids"
    process = subprocess.Popen(
        [sys.executable, "-m", "conformance", "run"],
        cwd=folder,
        env=environment(FAKE_ENGINE_PID=str(noted)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert eventually(lambda: noted.exists() and len(noted.read_text().split()) == 2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert f"STOPPED EARLY: {len(CHECKS)} of {2 * len(CHECKS)} verdicts were not reached" in output
    assert output.splitlines()[-1] == "interrupted"


# --- models, show: in this process, as they start nothing ---


def invoke(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, args, env={"COLUMNS": "80"})
    return result.exit_code, result.output


def test_models_are_listed(tmp_path: Path) -> None:
    extra = "\n".join(
        [
            '[[model]]\nid = "hub"\narchitecture = "LlamaForCausalLM"',
            f'source = {{hub = "org/name", revision = "{"0" * 40}"}}',
            '[[model]]\nid = "wheel"\narchitecture = "GPT2LMHeadModel"',
            '[model.source.wheel]\nformat = "gguf"',
            f'packages = [{{requirement = "pkg==1.0", sha256 = "{"0" * 64}", members = ["a/b"]}}]',
        ]
    )
    folder = write(tmp_path, ["ok"], extra, top='ledger = "known.toml"')
    folder.joinpath("known.toml").write_text(ledger_toml(defect(shows("loss", "ok"))))
    code, output = invoke("models", "--models", str(folder / "models.toml"))
    assert code == 0
    rows = [line.split() for line in output.splitlines()]
    assert rows[0][:4] == ["id", "architecture", "source", "dtype"]
    assert any(row[0] == "ok" and "bridge" in row and row[-1] == "1" for row in rows)
    assert any(row[:4] == ["hub", "LlamaForCausalLM", "hub", "org/name"] for row in rows)
    assert any("pkg==1.0" in row for row in rows)


def test_a_wrong_file_is_a_usage_error(tmp_path: Path) -> None:
    code, output = invoke("models", "--models", str(tmp_path / "absent.toml"))
    assert code == 2
    assert "No such file" in output


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("earlier"), ["ok", "sub.fail", "sub.segv"])
    assert conformance(folder, "run").code == 1
    return folder / "conformance-out"


def test_an_earlier_run_is_shown(earlier: Path) -> None:
    code, output = invoke("show", str(earlier))
    assert code == 1
    assert "FAIL: sub.fail / bridge / weights" in output
    assert "the same: bridge / activations" in output
    assert ["ok", "bridge", *["."] * len(CHECKS)] in [line.split() for line in output.splitlines()]
    assert f"{3 * len(CHECKS)} verdicts" in output
    assert (code, output) == invoke("show", str(earlier / "records.jsonl"))


def test_a_truncated_run_is_shown_as_one(earlier: Path, tmp_path: Path) -> None:
    lines = earlier.joinpath("records.jsonl").read_text().splitlines(keepends=True)
    file = tmp_path / "records.jsonl"
    file.write_text("".join(lines[: 1 + len(CHECKS)]) + lines[-1][:20])
    code, output = invoke("show", str(tmp_path))
    assert code == 3
    assert "TRUNCATED" in output
    assert {json.loads(line)["model"] for line in lines[1 : 1 + len(CHECKS)]} == {"ok"}


def test_a_run_whose_ledger_is_stale_fails_and_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path, ["sub.fail"], top='ledger = "known.toml"')
    places = shows("loss", "sub.fail"), shows("loss", "sub.fail", first_divergence="embed")
    folder.joinpath("known.toml").write_text(ledger_toml(defect(*places)))
    done = conformance(folder, "run", "--check", "loss")
    assert done.code == 1
    assert "1 verdict: 1 xfailed" in done.output
    assert "STALE: known.toml:8: bridge / loss: no port fails as listed: sub.fail" in done.output
    code, output = invoke("show", str(folder / "conformance-out"))
    assert (code, "STALE: known.toml:8" in output) == (1, True)


@pytest.mark.parametrize("text", [None, "", "{}\n"])
def test_what_is_not_a_run_is_a_usage_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        tmp_path.joinpath("records.jsonl").write_text(text)
    code, output = invoke("show", str(tmp_path))
    assert code == 2
    assert "records.jsonl" in output
    assert "hint:" in output
