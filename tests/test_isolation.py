"""Whatever a job does to its process, its parent gets an outcome and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from fakes import environment, fake_model, run

from conformance import isolation
from conformance.errors import ConformanceError, ImplementationError, NotApplicable
from conformance.isolation import Isolation, IsolationError, Outcome
from conformance.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fakes import Eventually

ENGINE = "fake_engine:run_job"


@pytest.fixture(scope="module")
def children() -> Iterator[Isolation]:
    with Isolation(ENGINE, reference_preload=(), subject_preload=()) as isolated:
        yield isolated


def subject(name: str, *checks: str) -> tuple[Job, ...]:
    return (Job("subject", fake_model(name), "/nowhere", "bridge", None, checks or ("logits",)),)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped by its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_job_that_ends_well(children: Isolation) -> None:
    said: list[str] = []
    outcome = children.run(subject("ok", "weights", "logits"), timeout=30, progress=said.append)
    assert outcome.status == "ok"
    assert [record["check"] for record in outcome.records] == ["weights", "logits"]
    assert said == ["subject of ok"]
    assert outcome.peak_bytes is not None
    assert outcome.peak_bytes > 1_000_000
    assert 0 < outcome.duration_s < 30


@pytest.mark.parametrize(
    ("name", "status", "cause"),
    [
        ("sub.segv", "crashed", "SIGSEGV"),
        ("sub.abort", "crashed", "SIGABRT"),
        ("sub.exit", "crashed", "exited with code 7"),
        ("sub.quiet", "crashed", "exited with code 0 before the end"),
        ("sub.sigkill", "crashed", "the kernel counted no out-of-memory kill"),
        ("sub.sysexit", "raised", "SystemExit: no"),
        ("sub.bug", "raised", "ZeroDivisionError: division by zero"),
        ("sub.impl", "raised", "ImplementationError: cannot load the port"),
        ("sub.unplain", "raised", "TypeError"),
        ("sub.memory", "oom", "MemoryError: no room"),
        ("sub.torchoom", "oom", "ImplementationError: cannot load"),
    ],
)
def test_a_job_that_ends_badly(children: Isolation, name: str, status: str, cause: str) -> None:
    outcome = children.run(subject(name), timeout=30)
    assert (outcome.status, outcome.records) == (status, ())
    assert cause in outcome.cause
    assert outcome.kind == "subject"
    assert f"about to {name[4:]}" in outcome.output
    assert outcome.peak_bytes is not None
    assert children.run(subject("ok"), timeout=30).status == "ok"


def test_a_crash_says_what_it_was_doing_and_where(children: Isolation) -> None:
    outcome = children.run(subject("sub.segv"), timeout=30)
    assert outcome.signal == "SIGSEGV"
    details = outcome.details()
    assert "it was at: subject of sub.segv" in details
    assert "in _misbehave" in details
    assert "forkserver.py" not in details


def test_an_exception_arrives_as_text(children: Isolation) -> None:
    outcome = children.run(subject("sub.impl"), timeout=30)
    assert outcome.is_a(ImplementationError)
    assert outcome.is_a(ConformanceError)
    assert not outcome.is_a(NotApplicable)
    assert (outcome.message, outcome.hint) == ("cannot load the port", "read the loader")
    assert "in _misbehave" in outcome.traceback


def test_verdicts_sent_before_a_crash_are_kept(children: Isolation) -> None:
    outcome = children.run(subject("sub.half", "weights", "logits"), timeout=30)
    assert outcome.status == "crashed"
    assert [record["check"] for record in outcome.records] == ["weights"]


def test_a_hang_is_ended_and_located(children: Isolation) -> None:
    outcome = children.run(subject("sub.hang"), timeout=3)
    assert outcome.status == "timeout"
    assert outcome.cause == "no end after 3 s, killed"
    assert "in _misbehave" in outcome.output
    assert children.run(subject("ok"), timeout=30).status == "ok"


def test_a_time_out_ends_what_the_child_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    noted = tmp_path / "pids"
    monkeypatch.setenv("FAKE_ENGINE_PID", str(noted))
    with Isolation(ENGINE, reference_preload=(), subject_preload=()) as own:
        assert own.run(subject("sub.fork"), timeout=3).status == "timeout"
        pids = [int(word) for word in noted.read_text().split()]
        assert len(pids) == 2
        assert eventually(lambda: not any(map(alive, pids)))


def test_a_kill_by_the_kernel_is_out_of_memory(
    children: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(isolation, "_oom_kills", lambda: next(counts))
    outcome = children.run(subject("sub.sigkill"), timeout=30)
    assert outcome.status == "oom"
    assert "out of memory" in outcome.cause


def test_the_kernels_count_can_be_read() -> None:
    assert isolation._oom_kills() >= 0


def test_output_of_a_child_stays_out_of_ours(
    children: Isolation, capfd: pytest.CaptureFixture[str]
) -> None:
    assert children.run(subject("sub.chatty"), timeout=30).status == "ok"
    assert capfd.readouterr() == ("", "")


def test_only_the_visible_end_of_a_progress_bar_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "output"
    file.write_bytes(b"1%\r2%\r3%\n\nlast \xff\n")
    with file.open("rb") as stream:
        assert isolation._tail(stream) == "3%\nlast \N{REPLACEMENT CHARACTER}"


def test_jobs_of_one_run_share_a_child_and_other_runs_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("FAKE_ENGINE_LOG", str(log))
    model = fake_model("ok")
    with Isolation(ENGINE, reference_preload=(), subject_preload=()) as own:
        pair = (Job("checkpoint", model, "/nowhere"), Job("reference", model, "/nowhere"))
        assert own.run(pair, timeout=30).status == "ok"
        assert own.run(subject("ok"), timeout=30).status == "ok"
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == ["checkpoint", "reference", "subject"]
    pids = [line[-1] for line in lines]
    assert pids[0] == pids[1] != pids[2]
    assert str(os.getpid()) not in pids


def test_a_reference_never_sees_what_subjects_import() -> None:
    model = fake_model("ok")
    said: list[str] = []
    with Isolation(
        "fake_engine:tell_surroundings",
        reference_preload=("colorsys", "no_such_module"),
        subject_preload=("tabnanny",),
        threads=3,
    ) as own:
        for job in (*subject("ok"), Job("reference", model, "/nowhere")):
            assert own.run((job,), timeout=30, progress=said.append).status == "ok"
    assert said == ["modules: colorsys tabnanny; threads: 3", "modules: colorsys; threads: 3"]


def test_a_library_whose_import_kills_the_process_kills_only_children(tmp_path: Path) -> None:
    tmp_path.joinpath("lethal.py").write_text("import os; os.abort()")
    path = [*sys.path, str(tmp_path)]
    with Isolation(
        ENGINE, reference_preload=(), subject_preload=("lethal",), import_path=path
    ) as own:
        assert own.run(subject("ok"), timeout=30).status == "ok"
    with Isolation(
        ENGINE, reference_preload=("lethal",), subject_preload=("lethal",), import_path=path
    ) as own:
        assert own.run(subject("ok"), timeout=30).status == "ok"


def test_a_server_that_cannot_start_says_why() -> None:
    with (
        Isolation(ENGINE, reference_preload=(), subject_preload=(), import_path=()) as own,
        pytest.raises(IsolationError, match="No module named"),
    ):
        own.run(subject("ok"), timeout=30)


def test_a_job_that_kills_the_server_is_a_crash_and_the_next_one_runs(children: Isolation) -> None:
    outcome = children.run(subject("sub.killserver"), timeout=30)
    assert outcome.status == "crashed"
    assert "the process that forks the children died while the job ran" in outcome.cause
    assert children.run(subject("ok"), timeout=30).status == "ok"


def test_an_engine_that_does_not_exist_is_reported() -> None:
    with Isolation("no_such_engine:run", reference_preload=(), subject_preload=()) as own:
        outcome = own.run(subject("ok"), timeout=30)
    assert outcome.status == "raised"
    assert "no_such_engine" in outcome.message


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    noted = tmp_path / "pids"
    monkeypatch.setenv("FAKE_ENGINE_PID", str(noted))

    def interrupt(*_: object) -> None:
        if not noted.exists():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with Isolation(ENGINE, reference_preload=(), subject_preload=()) as own:
            with pytest.raises(KeyboardInterrupt):
                own.run(subject("sub.fork"), timeout=60)
            assert own.run(subject("ok"), timeout=30).status == "ok"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    pids = [int(word) for word in noted.read_text().split()]
    assert eventually(lambda: not any(map(alive, pids)))


def test_a_killed_parent_leaves_nothing_behind(tmp_path: Path, eventually: Eventually) -> None:
    noted = tmp_path / "pids"
    code = """
        from conformance.isolation import Isolation
        from test_isolation import subject
        own = Isolation("fake_engine:run_job", reference_preload=(), subject_preload=())
        own.run(subject("sub.fork"), timeout=60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(FAKE_ENGINE_PID=str(noted)),
    )
    try:
        assert eventually(lambda: noted.exists() and len(noted.read_text().split()) == 2)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(word) for word in noted.read_text().split()]
    assert eventually(lambda: not any(map(alive, pids)))


def test_closing_twice_is_harmless(children: Isolation) -> None:
    own = Isolation(ENGINE, reference_preload=(), subject_preload=())
    own.close()
    own.close()


@pytest.mark.parametrize(
    ("code", "status", "cause"),
    [
        (None, "crashed", "the process that forks the children died before the job began"),
        (-signal.SIGILL, "crashed", "SIGILL"),
        (-60, "crashed", "signal 60"),
    ],
)
def test_ends_that_are_hard_to_bring_about(code: int | None, status: str, cause: str) -> None:
    outcome = isolation._died(code, started=False, kernel_killed=False)
    assert outcome.status == status
    assert outcome.cause.startswith(cause)


def test_details_of_a_bare_outcome() -> None:
    assert Outcome("crashed", cause="SIGILL").details() == "SIGILL"


@pytest.mark.parametrize(
    "module", ["isolation", "plugin", "cli", "runner", "selection", "recorder", "report.terminal"]
)
def test_no_tensor_library_is_imported(module: str, tmp_path: Path) -> None:
    code = (
        f"import sys, conformance.{module}; "
        "print([m for m in ('torch', 'transformers', 'transformer_lens') if m in sys.modules])"
    )
    assert run(tmp_path, sys.executable, "-c", code).output == "[]\n"
