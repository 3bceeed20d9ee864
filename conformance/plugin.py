"""The pytest plugin: options, one item per case, transport of verdicts, exit codes.

Where the suite is not what is run it does nothing but offer ``--conformance-...`` options: the
short names are registered only for runs of the suite and only where nobody else took them. It
imports the standard library and pytest; the rest follows when there is something to run.

Exit codes of a run of the suite: 0 all right, 1 a port does not conform or the ledger of expected
failures is stale, 2 usage (or interrupted, which is pytest's own meaning of 2), 3 the harness
itself failed.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest

if TYPE_CHECKING:
    from conformance.isolation import Isolation
    from conformance.jobs import Limit
    from conformance.recorder import Recorder
    from conformance.records import JudgementSummary, Stale, Verdict
    from conformance.runner import Runner
    from conformance.selection import Case
    from conformance.spec import Spec

SUITE = Path(__file__).parent / "suite"
DEFAULT_MODELS = "models.toml"
DEFAULT_OUT = "conformance-out"
DEFAULT_TIMEOUT_S = 1800.0
#: ``module:function`` that children call; for the harness's own tests.
ENGINE_VARIABLE = "CONFORMANCE_ENGINE"

TEST = "test_conformance.py::test_conformance["
_USAGE, _HARNESS = 2, 3

#: A callable that the command line sets to hear what a model is doing (not with ``-n``).
PROGRESS = pytest.StashKey[Callable[[str, str | None, str], None]]()
_VERDICT = pytest.StashKey["Verdict"]()


# --- options ---------------------------------------------------------------------------------


_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "models": {
        "metavar": "FILE",
        "default": DEFAULT_MODELS,
        "help": f"The models to check (default: ./{DEFAULT_MODELS})",
    },
    "model": {
        "metavar": "ID",
        "action": "append",
        "default": [],
        "help": "Check only this model; a glob such as 'gpt2*' works, and so does a name of the "
        "hub, which is then fetched and judged itself. Can be repeated.",
    },
    "subject": {
        "metavar": "S",
        "action": "append",
        "default": [],
        "help": "Check only this subject: bridge, hooked, or one declared in FILE. "
        "Can be repeated.",
    },
    "check": {
        "metavar": "C",
        "action": "append",
        "default": [],
        "help": "Run only this check. Can be repeated.",
    },
    "dtype": {
        "metavar": "D",
        "default": None,
        "help": "Run every model in this dtype instead of its own: float32, bfloat16, float16 or "
        "float64",
    },
    "tier": {
        "metavar": "NAME",
        "default": None,
        "help": "Run what fits a machine of this tier, skip the rest: see `conformance tiers`",
    },
    "fit": {
        "action": "store_true",
        "default": False,
        "help": "Run what fits the memory that is free on this machine now, skip the rest",
    },
    "out": {
        "metavar": "DIR",
        "default": DEFAULT_OUT,
        "help": f"Where records.jsonl is written (default: {DEFAULT_OUT})",
    },
    "timeout": {
        "metavar": "SECONDS",
        "default": None,
        "help": f"Longest time for one reference or one subject (default: {DEFAULT_TIMEOUT_S:g})",
    },
}


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    config = pluginmanager.get_plugin("pytestconfig")
    known = getattr(config, "known_args_namespace", None)
    # Registered by a conftest: then the hook below is already being called, without us.
    if getattr(known, "confcutdir", None) is not None:
        assert config is not None
        _add_options(parser, config, config.invocation_params.args)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, None, None]:
    yield
    # Last, so that every other plugin and conftest has had its choice of names.
    _add_options(parser, early_config, args)


def _add_options(
    parser: pytest.Parser, config: pytest.Config, args: Iterable[str | os.PathLike[str]]
) -> None:
    group = parser.getgroup("conformance", "conformance of TransformerLens ports")
    short = _mentions_suite(config, args)
    for name, attributes in _OPTIONS.items():
        names = [f"--conformance-{name}"]
        if not _is_free(parser, names[0]):
            continue
        if short and _is_free(parser, f"--{name}"):
            names.insert(0, f"--{name}")
        group.addoption(*names, dest=f"conformance_{name}", **attributes)


def _mentions_suite(config: pytest.Config, args: Iterable[str | os.PathLike[str]]) -> bool:
    if SUITE.is_relative_to(config.rootpath) and "site-packages" not in SUITE.parts:
        return True
    words = [*map(str, args), *config.getini("testpaths"), os.environ.get("PYTEST_ADDOPTS", "")]
    hints = ("conformance.suite", str(Path("conformance", "suite")), "test_conformance.py")
    return any(word == "conformance" or any(hint in word for hint in hints) for word in words)


def _is_free(parser: pytest.Parser, name: str) -> bool:
    try:
        return bool(parser.parse_known_and_unknown_args([f"{name}=1"])[1])
    except pytest.UsageError:
        return False  # somebody else's, and it does not take such a value


# --- what this run is ------------------------------------------------------------------------


@dataclass
class _Run:
    """Everything about a run of the suite, in the controller or in a worker."""

    config: pytest.Config
    spec: Spec
    cases: tuple[Case, ...]
    out: Path
    timeout: float
    limit: Limit | None = None
    chosen: tuple[Case, ...] = ()
    recorder: Recorder | None = None
    isolation: Isolation | None = None
    runner: Runner | None = None
    selected: int = 0
    shown: dict[str, str] = field(default_factory=dict)
    stale: tuple[Stale, ...] = ()

    @property
    def models_option(self) -> str | None:
        """The value of ``--models`` where it has to be given again, else None."""
        value = str(self.config.getoption("conformance_models"))
        return None if value == DEFAULT_MODELS else value

    @property
    def dtype_option(self) -> str | None:
        """The value of ``--dtype``, which has to be given again; None where it was not given."""
        value: str | None = self.config.getoption("conformance_dtype")
        return value

    def close(self) -> None:
        if self.isolation is not None:
            self.isolation.close()
        self.isolation = self.runner = None


_RUN = pytest.StashKey[_Run]()


def pytest_configure(config: pytest.Config) -> None:
    informs = (config.getoption(name, False) for name in ("help", "version", "markers"))
    if _targets_suite(config) and not any(informs):
        _run_of(config)


def _targets_suite(config: pytest.Config) -> bool:
    """Whether the suite is among the arguments; without collecting, as a controller never does."""
    for arg in config.args:
        name = str(arg).partition("[")[0].partition("::")[0]
        if config.getoption("pyargs") and (
            name == "conformance" or name.startswith("conformance.suite")
        ):
            return True
        path = (config.invocation_params.dir / name).resolve()
        if path == SUITE or SUITE in path.parents:
            return True
        if SUITE.is_relative_to(path):
            between = SUITE.relative_to(path).parts
            if not any(part.startswith(".") or part == "site-packages" for part in between):
                return True
    return False


def _run_of(config: pytest.Config) -> _Run:
    """The run; made, and every option validated, when first asked for."""
    if _RUN not in config.stash:
        from conformance.errors import ConformanceError

        try:
            run = config.stash[_RUN] = _make_run(config)
        except ConformanceError as error:
            _usage_error(str(error))
        if not _is_worker(config):
            config.pluginmanager.register(_Receiver(run), "conformance-receiver")
    return config.stash[_RUN]


def _usage_error(message: str) -> NoReturn:
    pytest.exit(f"conformance: {message}", returncode=_USAGE)


def _make_run(config: pytest.Config) -> _Run:
    from conformance.selection import select, with_dtype, with_named
    from conformance.spec import load_spec

    here = config.invocation_params.dir
    models = config.getoption("conformance_model")
    spec = with_named(load_spec(here / str(config.getoption("conformance_models"))), models)
    spec = with_dtype(spec, config.getoption("conformance_dtype"))
    return _Run(
        config=config,
        spec=spec,
        cases=select(
            spec,
            models=models,
            subjects=config.getoption("conformance_subject"),
            checks=config.getoption("conformance_check"),
        ),
        out=here / str(config.getoption("conformance_out")),
        timeout=_timeout(config),
        limit=_limit(config, spec),
    )


def _limit(config: pytest.Config, spec: Spec) -> Limit | None:
    """The memories that a run must fit in; of ``--fit`` what is free before anything was run."""
    from conformance.selection import SelectionError, tier_named

    tier, fit = config.getoption("conformance_tier"), config.getoption("conformance_fit")
    if tier is not None and fit:
        raise SelectionError("--tier and --fit exclude each other", "give one of the two")
    if tier is not None:
        from conformance.footprint.fitting import limit_of_tier

        return limit_of_tier(tier_named(spec, tier))
    if fit:
        from conformance.footprint.fitting import limit_here
        from conformance.footprint.machine import free

        return limit_here(free(), getattr(config, "workerinput", {}).get("workercount", 1))
    return None


def _timeout(config: pytest.Config) -> float:
    from conformance.selection import SelectionError

    value = config.getoption("conformance_timeout")
    if value is None and config.pluginmanager.hasplugin("timeout"):
        value = config.getoption("timeout", None)  # pytest-timeout owns the short name
    if value is None:
        return DEFAULT_TIMEOUT_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SelectionError(f"--timeout: {value!r} is not a number of seconds", "write 600")
    return seconds


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


# --- collection ------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "conformance_case" in metafunc.fixturenames:
        cases = _run_of(metafunc.config).cases
        metafunc.parametrize("conformance_case", cases, ids=[case.id for case in cases])


def _case_of(item: pytest.Item) -> Case | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("conformance_case")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put a model's items next to each other again, whatever other plugins did to the order."""
    ours = [(index, case) for index, item in enumerate(items) if (case := _case_of(item))]
    if not ours:
        return
    order = {case: position for position, case in enumerate(_run_of(config).cases)}
    places = [index for index, _ in ours]
    in_order = [items[index] for index, case in sorted(ours, key=lambda pair: order[pair[1]])]
    for place, item in zip(places, in_order, strict=True):
        items[place] = item
        if config.pluginmanager.hasplugin("timeout"):
            # A model's time is limited where it runs; pytest-timeout would kill the worker.
            item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    run = config.stash.get(_RUN, None)
    if run is None or config.getoption("collectonly"):
        return
    run.chosen = tuple(case for item in session.items if (case := _case_of(item)))
    if not _is_worker(config):
        _begin(run, len(run.chosen))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    run = node.config.stash.get(_RUN, None)
    if run is not None:
        _begin(run, sum(TEST in nodeid for nodeid in ids))


def _begin(run: _Run, selected: int) -> None:
    """Open the records file, once it is known that there is something to record."""
    run.selected = selected
    if not selected or run.recorder is not None:
        return
    from conformance.errors import RecordsError
    from conformance.recorder import Recorder
    from conformance.selection import listed

    command = (Path(sys.argv[0]).name, *map(str, run.config.invocation_params.args))
    try:
        names = listed(run.spec, {case.model for case in run.cases})
        run.recorder = Recorder(run.out, run.spec, selected, command, names, dtype=run.dtype_option)
    except RecordsError as error:
        _usage_error(str(error))


# --- distribution ----------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With plain ``-n``, give all items of a model to one worker, so that they share one run."""
    if _RUN not in config.stash or config.getoption("dist") != "load":
        return None
    return _scheduler_class()(config, log)


def _scheduler_class() -> Any:
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class ModelScheduling(LoadScopeScheduling):  # type: ignore[misc]
        """Conformance items by model; every other item by itself."""

        def _split_scope(self, nodeid: str) -> str:
            _, found, rest = nodeid.partition(TEST)
            return f"model {rest.partition('/')[0]}" if found else nodeid

        def remove_node(self, node: Any) -> str | None:
            """As in the base class, but the item a worker died of is not run once more."""
            units = self.assigned_work.pop(node)
            unfinished = [unit for unit in units.values() if not all(unit.values())]
            if not unfinished:
                return None
            crashed: str = next(name for name, done in unfinished[0].items() if not done)
            unfinished[0][crashed] = True
            self.workqueue.update(
                {scope: unit for scope, unit in units.items() if not all(unit.values())}
            )
            for other in self.assigned_work:
                self._reschedule(other)
            return crashed

    return ModelScheduling


# --- running ---------------------------------------------------------------------------------


@pytest.fixture
def conformance_judge(request: pytest.FixtureRequest) -> Callable[[Case], None]:
    """Turns a case's verdict into the outcome of the item."""

    def judge(case: Case) -> None:
        run = _run_of(request.config)
        verdict = _runner(run).verdict(case)
        request.node.stash[_VERDICT] = verdict
        _conclude(run, verdict)

    return judge


def _conclude(run: _Run, verdict: Verdict) -> None:
    from conformance.report.terminal import abridged, explain

    if verdict.outcome == "passed":
        return
    reason = verdict.reason or "no reason given"
    if verdict.outcome in ("skipped", "not_applicable"):
        pytest.skip(f"{verdict.outcome.replace('_', ' ')}: {reason.splitlines()[0]}")
    if verdict.outcome == "xfailed":
        pytest.xfail(reason.splitlines()[0])  # a no-op under --runxfail, which wants to see it
    shown = abridged(verdict, run.shown)
    text = explain(shown, models=run.models_option, dtype=run.dtype_option)
    pytest.fail(text, pytrace=False)


def _runner(run: _Run) -> Runner:
    if run.runner is None:
        from conformance.checkpoints import cache_dir
        from conformance.isolation import DEFAULT_ENGINE, Isolation
        from conformance.loaders import import_path
        from conformance.runner import Runner

        engine = os.environ.get(ENGINE_VARIABLE, DEFAULT_ENGINE)
        path = import_path(run.spec, run.config.invocation_params.dir)
        threads = _threads(run.config)
        run.isolation = (
            Isolation(engine, threads=threads, import_path=path)
            if engine == DEFAULT_ENGINE
            else Isolation(
                engine,
                reference_preload=(),
                subject_preload=(),
                threads=threads,
                import_path=path,
            )
        )
        run.runner = Runner(
            run.spec,
            run.chosen,
            run.isolation,
            cache=cache_dir(),
            timeout=run.timeout,
            progress=run.config.stash.get(PROGRESS, None),
            limit=run.limit,
        )
    return run.runner


def _threads(config: pytest.Config) -> int:
    """How many threads a child may use, so that all workers' children together fit."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    return max(1, cpus // workers)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the verdict, as text that xdist can carry, and as properties for JUnit."""
    report = yield
    case = _case_of(item)
    ended_in_setup = call.when == "setup" and not report.passed
    if case is None or not (call.when == "call" or ended_in_setup):
        return report
    verdict = item.stash.get(_VERDICT, None)
    if verdict is None:
        run, skipped = _run_of(item.config), report.skipped
        verdict = _made_here(run, case, "skipped" if skipped else "error", report.longreprtext)
    item.user_properties.extend(_properties(verdict))
    report.user_properties = list(item.user_properties)
    _attach(report, verdict)
    return report


def _attach(report: pytest.TestReport, verdict: Verdict) -> None:
    from conformance.records import to_json

    # Lone surrogates, as in names of files, do not survive the way to the controller.
    line = to_json(verdict).encode("utf-8", "backslashreplace").decode("utf-8")
    report.conformance_record = line  # type: ignore[attr-defined]


def _made_here(run: _Run, case: Case, outcome: Literal["skipped", "error"], reason: str) -> Verdict:
    """The verdict of an item that ended without one of the runner's."""
    from conformance.records import Verdict

    model = next(model for model in run.spec.models if model.id == case.model)
    return Verdict(
        model=case.model,
        subject=case.subject,
        check=case.check,
        outcome=outcome,
        architecture=model.architecture,
        evidence=model.evidence,
        dtype=model.dtype,
        reason=reason,
    )


def _properties(verdict: Verdict) -> list[tuple[str, object]]:
    """Of the judgements, the one that came closest to its bound or went furthest past it."""
    properties: list[tuple[str, object]] = [
        ("model", verdict.model),
        ("subject", verdict.subject),
        ("check", verdict.check),
        ("outcome", verdict.outcome),
        ("evidence", verdict.evidence),
        ("dtype", verdict.dtype or ""),
        ("first_divergence", verdict.first_divergence or ""),
        ("duration_s", f"{verdict.duration_s:.3f}"),
        ("peak_bytes", verdict.peak_bytes or ""),
    ]
    judged = [(name, s) for name, s in verdict.verdict.items() if s.margin is not None]
    if judged:
        name, worst = max(judged, key=lambda pair: _badness(pair[1]))
        properties += [
            ("judgement", name),
            ("measured", worst.measured),
            ("allowed", worst.allowed),
            ("margin", worst.margin),
        ]
    return properties


def _badness(summary: JudgementSummary) -> float:
    """How bad a margin is; NaN, which no comparison finds large, is the worst."""
    margin = summary.margin or 0.0
    return math.inf if math.isnan(margin) else margin


# --- the controller's side -------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """A worker died, which a model must not be able to bring about."""
    run = sched.config.stash.get(_RUN, None)
    if run is None or TEST not in crashitem:
        return
    case = next(case for case in run.cases if crashitem.endswith(f"[{case.id}]"))
    _attach(report, _made_here(run, case, "error", f"the harness failed: {report.longrepr}"))


class _Receiver:
    """Writes what arrives; registered in the controller, or in the only process."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = getattr(report, "conformance_record", None)
        if line is not None and self._run.recorder is not None:
            from conformance.records import verdict_from_dict

            self._run.recorder.add(verdict_from_dict(json.loads(line)))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    run = session.config.stash.get(_RUN, None)
    if run is None:
        return
    run.close()
    if _is_worker(session.config):
        return
    run.stale = _stale(run)
    session.exitstatus = _exit_status(session, int(exitstatus), run)
    if run.recorder is not None:
        run.recorder.finish(int(session.exitstatus), run.stale)
        from conformance.report.html.pages import write
        from conformance.report.markdown import write_page

        write_page(run.recorder.path)
        write(run.recorder.path)


def _stale(run: _Run) -> tuple[Stale, ...]:
    """What the ledger lists and no verdict of this run, whichever process reached it, showed."""
    if run.recorder is None or run.spec.ledger is None:
        return ()
    from conformance.ledger.stale import stale
    from conformance.records import read

    return stale(run.spec, [read(run.recorder.path)])


def _exit_status(session: pytest.Session, status: int, run: _Run) -> int:
    from conformance.report.terminal import exit_code

    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        return _USAGE
    if run.recorder is None:
        return status
    outcomes = run.recorder.outcomes
    maxfail: int = session.config.getoption("maxfail")
    stopped = maxfail and sum(outcomes[name] for name in outcomes if exit_code([name])) >= maxfail
    if status == pytest.ExitCode.INTERRUPTED and stopped:
        status = pytest.ExitCode.TESTS_FAILED  # what xdist calls an interruption
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return status
    lost = run.selected - outcomes.total()
    if lost > 0 and not stopped:
        return _HARNESS
    return exit_code(outcomes, run.stale) or int(status)


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is not None:
        run.close()


def pytest_report_header(config: pytest.Config) -> str | None:
    run = config.stash.get(_RUN, None)
    if run is None:
        return None
    models = len({case.model for case in run.cases})
    dtype = f", all in {run.dtype_option}" if run.dtype_option else ""
    asked = f"{models} models, {len(run.cases)} verdicts asked for{dtype}"
    return f"conformance: {run.spec.path}, {asked}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is None or config.getoption("collectonly"):
        return
    from conformance.report import PAGES
    from conformance.report.stale import stale_lines
    from conformance.report.terminal import counts

    terminalreporter.section("conformance")
    if run.recorder is None:
        terminalreporter.line("nothing was run: no case is left after -k, -m or --deselect")
        return
    terminalreporter.line(counts(run.recorder.outcomes))
    terminalreporter.line(f"records: {run.recorder.path}")
    terminalreporter.line(f"report: {run.recorder.path.parent / PAGES}")
    for line in stale_lines(run.stale):
        terminalreporter.line(line)
    lost = run.selected - run.recorder.outcomes.total()
    if lost:
        terminalreporter.line(f"{lost} of {run.selected} verdicts were not reached")
