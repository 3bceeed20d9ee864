"""The suite as pytest runs it, on an engine without libraries."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from fakes import (
    PYTEST,
    ROOT,
    SUITE_COMMAND,
    Finished,
    defect,
    environment,
    heed_interrupts,
    ledger_toml,
    models_toml,
    run,
    run_suite,
    shows,
)
from test_isolation import alive

from conformance import plugin
from conformance.checks.names import CHECKS
from conformance.records import read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fakes import Eventually

#: Model -> the outcome of each of its checks.
MENAGERIE = {
    "ok-first": "passed",
    "sub.fail": "failed",
    "sub.segv": "crashed",
    "sub.abort": "crashed",
    "sub.exit": "crashed",
    "sub.sigkill": "crashed",
    "sub.hang": "timeout",
    "sub.memory": "oom",
    "sub.na": "not_applicable",
    "sub.silent": "error",
    "sub.bug": "error",
    "sub.impl": "failed",
    "sub.killserver": "crashed",
    "ref.segv": "crashed",
    "ref.hang": "timeout",
    "get.error": "error",
    "ok-last": "passed",
}


def write(folder: Path, names: Sequence[str], extra: str = "", **more: str) -> Path:
    folder.joinpath("models.toml").write_text(models_toml(names, extra, **more))
    return folder


@pytest.fixture(scope="module", params=["alone", "two workers"])
def menagerie(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Everything that can go wrong, in one run; with and without workers."""
    folder = write(tmp_path_factory.mktemp("menagerie"), list(MENAGERIE))
    workers = ["-n", "2"] if request.param == "two workers" else []
    return run_suite(
        folder,
        *("--timeout", "8", "--junitxml", "junit.xml", "-v", "-rs", *workers),
        FAKE_ENGINE_LOG=str(folder / "log"),
    )


def test_every_case_gets_the_verdict_it_deserves(menagerie: Finished) -> None:
    assert menagerie.code == 3
    found = {key: verdict.outcome for key, verdict in menagerie.verdicts.items()}
    assert found == {
        (model, "bridge", check): outcome
        for model, outcome in MENAGERIE.items()
        for check in CHECKS
    }


def test_the_records_are_complete(menagerie: Finished) -> None:
    records = menagerie.records
    footer = records.footer
    assert footer is not None
    assert footer.exit_code == 3
    assert records.missing == 0
    assert sum(footer.outcomes.values()) == len(MENAGERIE) * len(CHECKS)
    assert records.header.models_toml == str(menagerie.folder / "models.toml")


def test_a_models_items_run_together(menagerie: Finished) -> None:
    """Its reference and its subject ran once, in one worker; both workers had something to do."""
    jobs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in menagerie.folder.joinpath("log").read_text().splitlines():
        kind, model, _, worker, _ = line.split()
        jobs[model].append((kind, worker))
    for ran in jobs.values():
        assert len(ran) == len({kind for kind, _ in ran})
        assert len({worker for _, worker in ran}) == 1
    workers = {worker for ran in jobs.values() for _, worker in ran}
    assert workers in ({"main"}, {"gw0", "gw1"})
    models = [verdict.model for verdict in menagerie.records.verdicts]
    if workers == {"main"}:
        assert models == sorted(models, key=list(MENAGERIE).index)


def test_node_ids_do_not_depend_on_workers(menagerie: Finished) -> None:
    found = set(re.findall(r"test_conformance\.py::test_conformance\[(\S+)\]", menagerie.output))
    assert found == {f"{model}/bridge/{check}" for model in MENAGERIE for check in CHECKS}


def test_reasons_tell_what_happened(menagerie: Finished) -> None:
    def reason(model: str) -> str:
        return menagerie.verdicts[model, "bridge", "logits"].reason or ""

    assert reason("sub.segv").startswith("SIGSEGV")
    assert "it was at: subject of sub.segv" in reason("sub.segv")
    assert reason("sub.exit").startswith("exited with code 7")
    assert reason("sub.hang").startswith("no end after 8 s")
    assert reason("ref.segv").startswith("the reference crashed: SIGSEGV")
    assert reason("ref.hang").startswith("the reference timed out")
    assert reason("get.error") == "no checkpoint: wrong hash\nhint: delete it and try again"
    assert reason("sub.na") == "no such subject here\nhint: use another version"


def test_a_failure_says_everything(menagerie: Finished) -> None:
    message = """\
        FAIL: sub.fail / bridge / logits (GPT2LMHeadModel, twin weights, in float32)
          first divergence: blocks.1.attn.pattern
          same function (promoted float64): 3 of 40 comparisons failed
            blocks.1.attn.pattern, prompt random-16
              measured 0.000325, allowed 1e-12: 3.25e+08 times too much
              largest difference at [0, 3, 5, 2]: reference 0.25, subject 0.250081
              allowed because: 8 times the reference's own spread in float64
            and 2 more; the worst are in records.jsonl
          run it again:
            conformance run --model sub.fail --subject bridge --check logits
            pytest --pyargs conformance.suite --model sub.fail --subject bridge --check logits
        """
    for line in message.splitlines():
        assert line.removeprefix("        ") in menagerie.output
    assert "SKIPPED" in menagerie.output
    assert "not applicable: no such subject here" in menagerie.output
    assert f"records: {menagerie.folder / 'conformance-out' / 'records.jsonl'}" in menagerie.output


def test_junit_carries_the_numbers(menagerie: Finished) -> None:
    root = ET.parse(menagerie.folder / "junit.xml").getroot()
    cases = {case.get("name", ""): case for case in root.iter("testcase")}
    assert len(cases) == len(MENAGERIE) * len(CHECKS)
    case = cases["test_conformance[sub.fail/bridge/logits]"]
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert (properties.pop("peak_bytes") or "").isdigit()
    assert properties == {
        "model": "sub.fail",
        "dtype": "float32",
        "subject": "bridge",
        "check": "logits",
        "outcome": "failed",
        "evidence": "twin",
        "first_divergence": "blocks.1.attn.pattern",
        "duration_s": "0.125",
        "judgement": "same_function",
        "measured": "0.000325",
        "allowed": "1e-12",
        "margin": "325000000.0",
    }
    crashed = cases["test_conformance[sub.segv/bridge/logits]"]
    assert {p.get("value") for p in crashed.iter("property")} >= {"crashed", "sub.segv"}
    assert "SIGSEGV" in (crashed.find("failure").text or "")  # type: ignore[union-attr]


def test_nothing_is_left_running(menagerie: Finished, eventually: Eventually) -> None:
    log = menagerie.folder.joinpath("log").read_text()
    pids = [int(line.split()[-1]) for line in log.splitlines()]
    assert eventually(lambda: not any(map(alive, pids)))


# --- exit codes ---


@pytest.mark.parametrize(
    ("names", "code"),
    [(["ok"], 0), (["ok", "sub.na"], 0), (["ok", "sub.fail"], 1), (["ok", "sub.segv"], 1)],
)
def test_exit_codes(tmp_path: Path, names: list[str], code: int) -> None:
    done = run_suite(write(tmp_path, names))
    assert done.code == code
    footer = done.records.footer
    assert footer is not None
    assert footer.exit_code == code


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--models", "absent.toml"], "absent.toml: No such file"),
        (["--model", "okk"], "unknown model 'okk'; did you mean 'ok'?"),
        (["--check", "logit"], "unknown check 'logit'; did you mean 'logits'?"),
        (["--subject", "hooked"], "no model chosen lists hooked among its subjects"),
        (["--timeout", "soon"], "--timeout: 'soon' is not a number of seconds"),
        (["--timeout=-1"], "--timeout: '-1' is not a number of seconds"),
        (["--out", "models.toml"], "models.toml/records.jsonl: "),
        (["-k", "nothing"], "no case is left after -k, -m or --deselect"),
    ],
)
def test_usage_errors(tmp_path: Path, args: list[str], message: str) -> None:
    done = run_suite(write(tmp_path, ["ok"]), *args)
    assert done.code == 2
    assert message in done.output
    assert not tmp_path.joinpath("conformance-out").exists()


def test_every_problem_of_the_file_is_reported(tmp_path: Path) -> None:
    tmp_path.joinpath("models.toml").write_text('schema = 1\n[[model]]\nid = "A"\nsorce = 1\n')
    done = run_suite(tmp_path, "-n", "2")
    assert done.code == 2
    for word in ("id", "architecture", "sorce"):
        assert word in done.output
    assert "Traceback" not in done.output


def test_selection_reaches_the_children(tmp_path: Path) -> None:
    folder = write(tmp_path, ["ok-1", "ok-2", "sub.fail"])
    done = run_suite(
        folder, "--model", "ok*", "--check", "loss", "--check", "weights", "--out", "deep/out"
    )
    assert done.code == 0
    records = read(folder / "deep" / "out" / "records.jsonl")
    assert [(v.model, v.check) for v in records.verdicts] == [
        (model, check) for model in ("ok-1", "ok-2") for check in ("weights", "loss")
    ]


def test_deselected_checks_are_not_run(tmp_path: Path) -> None:
    done = run_suite(write(tmp_path, ["ok"]), "-k", "logits")
    assert done.code == 0
    assert [v.check for v in done.records.verdicts] == ["logits"]


def test_a_declared_subject_is_first_class(tmp_path: Path) -> None:
    extra = '[subjects.mine]\nloader = "package.module:function"\n'
    folder = write(tmp_path, ["ok"], extra, subjects='["bridge", "mine"]')
    done = run_suite(folder, "--subject", "mine")
    assert done.code == 0
    assert {v.subject for v in done.records.verdicts} == {"mine"}


def listing(folder: Path, names: Sequence[str], *places: Mapping[str, object]) -> Path:
    """Models, with a ledger that lists where one defect shows; its places begin on line 7."""
    folder.joinpath("known.toml").write_text(ledger_toml(defect(*places)))
    return write(folder, names, top='ledger = "known.toml"')


def test_expected_failures_are_strict(tmp_path: Path) -> None:
    places = (
        shows("logits", "*", first_divergence="blocks.1.attn.pattern"),
        shows("loss", "*", first_divergence="embed"),
    )
    folder = listing(tmp_path, ["sub.fail"], *places)
    done = run_suite(folder, "--check", "logits", "--check", "loss")
    assert done.code == 1
    outcomes = {check: v.outcome for (_, _, check), v in done.verdicts.items()}
    assert outcomes == {"logits": "xfailed", "loss": "failed"}
    assert "failed differently from what the ledger expects" in done.output
    assert "at embed (known.toml:8, " in done.output
    assert done.records.stale == (), "it still fails: what to do about it is not for us to say"

    right = run_suite(tmp_path, "--check", "logits")
    assert right.code == 0

    passing = run_suite(listing(tmp_path, ["ok"], *places), "--check", "logits")
    assert passing.code == 1
    assert passing.verdicts["ok", "bridge", "logits"].outcome == "xpassed"
    assert "remove the entry" in passing.output


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_what_no_verdict_shows_is_stale(tmp_path: Path, workers: list[str]) -> None:
    # Beside another entry, or else it would be an unexpected pass.
    places = (
        shows("logits", "sub.fail-1", "sub.fail-2"),
        shows("logits", "sub.fail-1", first_divergence="embed"),
        shows("loss", "sub.fail-1"),
        shows("weights", "sub.fail-1", "sub.na", first_divergence="embed"),
    )
    folder = listing(tmp_path, ["sub.fail-1", "sub.fail-2", "sub.na"], *places)
    done = run_suite(folder, "--check", "logits", *workers)
    assert {v.outcome for v in done.records.verdicts} == {"xfailed", "not_applicable"}
    assert done.code == 1
    (stale,) = done.records.stale
    assert (stale.file, stale.line, stale.what) == ("known.toml", 8, "entry")
    said = "STALE: known.toml:8: bridge / logits: no port fails as listed: sub.fail-1"
    assert said in done.output
    page = folder.joinpath("conformance-out", "report.md").read_text()
    assert "## Stale expected failures" in page
    assert "known.toml:8" in page
    assert "the ledger of expected failures is stale" in page

    assert run_suite(folder, "--check", "logits", "--model", "sub.fail-2", *workers).code == 0


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_stopping_at_a_failure_says_what_was_not_reached(
    tmp_path: Path, workers: list[str]
) -> None:
    done = run_suite(write(tmp_path, ["sub.fail", "ok-1", "ok-2", "ok-3"]), "-x", *workers)
    assert done.code == 1
    assert done.records.missing
    assert "verdicts were not reached" in done.output


def test_an_item_that_another_plugin_skips_is_recorded(tmp_path: Path) -> None:
    tmp_path.joinpath("leaving_out.py").write_text(
        "import pytest\n"
        "def pytest_collection_modifyitems(items):\n"
        "    items[0].add_marker(pytest.mark.skip(reason='too big'))\n"
        "    items.reverse()\n"
    )
    folder = write(tmp_path, ["ok-1", "ok-2"])
    path = environment()["PYTHONPATH"] + os.pathsep + str(tmp_path)
    done = run_suite(folder, "-p", "leaving_out", PYTHONPATH=path)
    assert done.code == 0
    first, *others = done.records.verdicts
    assert (first.outcome, first.model) == ("skipped", "ok-1")
    assert "too big" in (first.reason or "")
    assert [v.model for v in others] == ["ok-1"] * (len(CHECKS) - 1) + ["ok-2"] * len(CHECKS)


@pytest.mark.parametrize(
    "defect",
    [
        "import pytest\n@pytest.fixture\ndef conformance_judge():\n    1 / 0\n",
        "from conformance.runner import Runner\nRunner.verdict = lambda self, case: 1 / 0\n",
    ],
)
def test_a_defect_of_the_harness_is_recorded_as_one(tmp_path: Path, defect: str) -> None:
    tmp_path.joinpath("breaking.py").write_text(defect)
    path = environment()["PYTHONPATH"] + os.pathsep + str(tmp_path)
    done = run_suite(write(tmp_path, ["ok"]), "-p", "breaking", "--check", "loss", PYTHONPATH=path)
    assert done.code == 3
    assert "ZeroDivisionError" in (done.verdicts["ok", "bridge", "loss"].reason or "")


def test_a_worker_that_dies_is_the_harness_failing(tmp_path: Path) -> None:
    tmp_path.joinpath("dying.py").write_text(
        "import os\n"
        "def pytest_runtest_call(item):\n"
        "    if 'ok-1/bridge/activations' in item.nodeid:\n"
        "        os._exit(9)\n"
    )
    path = environment()["PYTHONPATH"] + os.pathsep + str(tmp_path)
    folder = write(tmp_path, ["ok-1", "ok-2", "ok-3", "ok-4"])
    done = run_suite(folder, "-p", "dying", "-n", "2", PYTHONPATH=path)
    assert done.code == 3
    outcomes = {key[::2]: verdict.outcome for key, verdict in done.verdicts.items()}
    assert outcomes.pop(("ok-1", "activations")) == "error"
    assert set(outcomes.values()) == {"passed"}
    assert len(outcomes) == 4 * len(CHECKS) - 1


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_an_interrupted_run_keeps_its_records_and_leaves_nothing_running(
    tmp_path: Path, workers: list[str], eventually: Eventually
) -> None:
    folder = write(tmp_path, ["ok-1", "ok-2", "sub.fork-1", "sub.fork-2"])
    noted = tmp_path / "pids"
    process = subprocess.Popen(
        [*SUITE_COMMAND, *workers],
        cwd=folder,
        env=environment(FAKE_ENGINE_PID=str(noted)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert eventually(lambda: noted.exists() and len(noted.read_text().split()) == 2)
        pids = [int(word) for word in noted.read_text().split()]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2
    records = read(folder / "conformance-out" / "records.jsonl")
    assert {v.outcome for v in records.verdicts} == {"passed"}
    assert records.footer is not None
    assert records.footer.exit_code == 2
    assert records.missing
    assert eventually(lambda: not any(map(alive, pids)))


def test_a_killed_run_is_recognised_as_truncated(tmp_path: Path, eventually: Eventually) -> None:
    folder = write(tmp_path, ["ok", "sub.hang"])
    file = folder / "conformance-out" / "records.jsonl"
    process = subprocess.Popen(
        SUITE_COMMAND, cwd=folder, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        assert eventually(lambda: file.exists() and file.read_text().count("\n") > len(CHECKS))
    finally:
        process.kill()
        process.wait()
    assert read(file).truncated
    assert len(read(file).verdicts) == len(CHECKS)


# --- collection ---


def collect(folder: Path, *args: str) -> Finished:
    return run_suite(folder, "--collect-only", "-q", *args)


def test_collecting_two_hundred_models_imports_no_library(tmp_path: Path) -> None:
    tmp_path.joinpath("watching.py").write_text(
        "import sys\n"
        "def pytest_unconfigure():\n"
        "    heavy = {'torch', 'transformers', 'transformer_lens', 'numpy', 'rich'}\n"
        "    print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    path = environment()["PYTHONPATH"] + os.pathsep + str(tmp_path)
    folder = write(
        tmp_path, [f"m{number}" for number in range(200)], subjects='["bridge", "hooked"]'
    )
    done = run_suite(folder, "--collect-only", "-q", "-p", "watching", PYTHONPATH=path)
    assert done.code == 0
    assert done.output.count("test_conformance[") == 200 * 2 * len(CHECKS)
    assert "imported: []" in done.output
    assert not folder.joinpath("conformance-out").exists()


def test_the_suite_can_be_named_in_any_way(tmp_path: Path) -> None:
    folder = write(tmp_path, ["ok"])
    options = ("--collect-only", "-q", "--check", "loss")
    expected = "test_conformance[ok/bridge/loss]"
    for name in (
        str(plugin.SUITE),
        str(plugin.SUITE / "test_conformance.py"),
        str(plugin.SUITE / "test_conformance.py") + "::test_conformance[ok/bridge/loss]",
    ):
        done = run(folder, *PYTEST, *options, name)
        assert (done.code, expected in done.output) == (0, True), done.output
    done = run(
        folder,
        *(*PYTEST, *options, "--pyargs"),
        "conformance.suite.test_conformance::test_conformance[ok/bridge/loss]",
    )
    assert (done.code, expected in done.output) == (0, True), done.output


def test_a_conftest_may_list_the_plugin_too(tmp_path: Path) -> None:
    folder = write(tmp_path, ["ok"])
    folder.joinpath("conftest.py").write_text("pytest_plugins = ['conformance.plugin']\n")
    assert collect(folder, "--check", "loss").code == 0
    alone = run(
        folder,
        *(sys.executable, "-m", "pytest", "--pyargs", "conformance.suite", str(folder)),
        *("--collect-only", "-q", "--check", "loss"),
    )
    assert alone.code == 0, alone.output


# --- neighbours ---


@pytest.fixture
def unrelated(tmp_path: Path) -> Path:
    tmp_path.joinpath("test_theirs.py").write_text(
        "import sys\n"
        "def test_theirs(request):\n"
        "    assert request.config.getoption('--model') == 'theirs'\n"
        "    assert request.config.getoption('--timeout') == 3\n"
        "    for name in ('conformance.spec', 'pydantic', 'torch', 'rich'):\n"
        "        assert name not in sys.modules\n"
        "def test_fails():\n"
        "    assert False\n"
    )
    tmp_path.joinpath("conftest.py").write_text(
        "def pytest_addoption(parser):\n"
        "    parser.addoption('--model', default='theirs')\n"
        "    parser.addoption('--timeout', type=int, default=3)\n"
        "    parser.addoption('--check', action='store_true')\n"
    )
    return tmp_path


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_another_project_is_left_alone(unrelated: Path, workers: list[str]) -> None:
    done = run(unrelated, *PYTEST, "--strict-config", *workers)
    assert done.code == 1, done.output
    assert "1 failed, 1 passed" in done.output
    assert "conformance:" not in done.output
    assert {path.name for path in unrelated.iterdir()} <= {
        "test_theirs.py",
        "conftest.py",
        "__pycache__",
    }
    none = run(unrelated, *PYTEST, "-k", "nothing")
    assert none.code == pytest.ExitCode.NO_TESTS_COLLECTED
    wrong = run(unrelated, *PYTEST, "--models", "x.toml")
    assert wrong.code == pytest.ExitCode.USAGE_ERROR


def test_names_that_others_took_have_a_longer_form(unrelated: Path) -> None:
    """Such as pytest-timeout's --timeout, or an option of a user's conftest."""
    write(unrelated, ["ok", "sub.fail"])
    unrelated.joinpath("test_theirs.py").unlink()
    here = str(unrelated)
    done = run_suite(unrelated, here, "--conformance-model", "ok", "--subject", "bridge")
    assert done.code == 0, done.output
    assert {v.model for v in done.records.verdicts} == {"ok"}


def test_pytest_timeout_limits_children_and_not_items(tmp_path: Path) -> None:
    """A stand-in for pytest-timeout: same names, and it fails items that are not exempt."""
    tmp_path.joinpath("standin.py").write_text(
        "import pytest\n"
        "def pytest_addoption(parser):\n"
        "    parser.getgroup('timeout').addoption('--timeout', type=float)\n"
        "def pytest_configure(config):\n"
        "    config.addinivalue_line('markers', 'timeout(seconds): limit')\n"
        "def pytest_runtest_setup(item):\n"
        "    mark = item.get_closest_marker('timeout')\n"
        "    assert mark is not None and mark.args == (0,)\n"
    )
    tmp_path.joinpath("loading.py").write_text(
        "import standin\n"
        "def pytest_addoption(parser, pluginmanager):\n"
        "    pluginmanager.register(standin, 'timeout')\n"
    )
    path = environment()["PYTHONPATH"] + os.pathsep + str(tmp_path)
    folder = write(tmp_path, ["sub.hang", "ok"])
    done = run_suite(folder, "-p", "loading", "--timeout", "8", PYTHONPATH=path)
    assert done.code == 1, done.output
    outcomes = {(v.model, v.outcome) for v in done.records.verdicts}
    assert outcomes == {("sub.hang", "timeout"), ("ok", "passed")}


def test_mixed_with_other_tests(tmp_path: Path) -> None:
    folder = write(tmp_path, ["ok"])
    folder.joinpath("test_theirs.py").write_text("def test_theirs():\n    assert False\n")
    done = run_suite(folder, "test_theirs.py", str(plugin.SUITE), "-n", "2")
    assert done.code == 1
    assert {v.outcome for v in done.records.verdicts} == {"passed"}
    footer = done.records.footer
    assert footer is not None
    assert footer.exit_code == 1


def test_the_plugin_imports_pytest_only(tmp_path: Path) -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import conformance.plugin; "
        "known = sys.stdlib_module_names; "
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in known))"
    )
    done = run(tmp_path, sys.executable, "-c", code)
    assert done.output.strip() == "['conformance', 'conformance.plugin']"


def test_threads_are_shared_between_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config:
        workerinput = {"workercount": 2}  # noqa: RUF012

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert plugin._threads(object()) == 8  # type: ignore[arg-type]
    assert plugin._threads(Config()) == 4  # type: ignore[arg-type]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert plugin._threads(Config()) == 1  # type: ignore[arg-type]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert plugin._threads(Config()) == 3  # type: ignore[arg-type]


def test_the_repository_finds_its_own_suite() -> None:
    assert plugin.SUITE == ROOT / "conformance" / "suite"
    assert plugin.SUITE.joinpath("test_conformance.py").exists()


def test_a_dtype_for_every_model_of_a_run(tmp_path: Path) -> None:
    done = run_suite(
        write(tmp_path, ["ok", "sub.fail", "sub.segv"]), "--dtype", "bfloat16", "--check", "loss"
    )
    assert done.code == 1
    assert done.records.header.dtype == "bfloat16"
    assert {v.dtype for v in done.records.verdicts} == {"bfloat16"}
    assert "all in bfloat16" in done.output
    # What shows it again is in the same dtype.
    again = "conformance run --model sub.fail --subject bridge --dtype bfloat16 --check loss"
    assert again in done.output
    assert again in (done.folder / "conformance-out" / "report.md").read_text()


def test_without_one_each_is_run_in_its_own(tmp_path: Path) -> None:
    text = models_toml(["ok", "sub.fail"])
    text = text.replace('id = "ok"', 'id = "ok"\ndtype = "float16"')
    tmp_path.joinpath("models.toml").write_text(text)
    done = run_suite(tmp_path, "--check", "loss")
    assert done.records.header.dtype is None
    assert {v.model: v.dtype for v in done.records.verdicts} == {
        "ok": "float16",
        "sub.fail": "float32",
    }
    assert "--dtype" not in done.output


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    done = run_suite(write(tmp_path, ["ok"]), "--dtype", "bf16")
    assert done.code == 2
    assert "--dtype: unknown dtype 'bf16'; did you mean 'bfloat16'?" in done.output
