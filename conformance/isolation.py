"""Runs jobs in processes of their own: a crash, a hang or an out-of-memory kill becomes data.

:class:`Isolation` keeps two servers (see :mod:`conformance.forkserver`). The first has imported
what the reference needs; the second is forked from it and has imported the subjects' library on
top. So imports are paid once, and a reference runs in a process that never saw that library.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from conformance import forkserver
from conformance.checks.names import CHECKS
from conformance.errors import ConformanceError

if TYPE_CHECKING:
    from conformance.jobs import Job

DEFAULT_ENGINE = "conformance.engine:run_job"
#: Imported once, before the first reference runs.
REFERENCE_PRELOAD: tuple[str, ...] = (
    "torch",
    "numpy",
    "safetensors.torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils",
    "conformance.implementations.huggingface",
)
#: Imported on top, in another process, before the first subject runs.
SUBJECT_PRELOAD: tuple[str, ...] = (
    "transformer_lens",
    "transformer_lens.model_bridge",
    "conformance.implementations.subjects",
    *(f"conformance.checks.{name}" for name in CHECKS),
)

Status = Literal["ok", "raised", "crashed", "timeout", "oom"]
Progress = Callable[[str], None]

#: Longest wait for the libraries to be imported: not the model's fault, so not its time.
_START_S = 600.0
#: Between asking a hanging child where it is and killing it.
_DUMP_S = 0.2
#: Between killing a child and giving up on hearing of its end.
_END_S = 15.0
_TAIL_LINES = 25
#: In a dump of a crash: how the child was forked, which says nothing of why it died.
_OWN_FRAME = re.compile(r'  File "(.*/conformance/forkserver\.py|<string>)", line \d+ in ')
_TAIL_BYTES = 32_768


class IsolationError(ConformanceError):
    """No child process could be had."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended, and what it had said by then.

    Attributes:
        status: ``ok`` means that every job was done.
        records: the verdicts sent, as dictionaries; kept even if the child died afterwards.
        cause: one line: the exception, the signal, the exit code, or the time-out.
        kind: the job it was on, such as ``reference``.
        doing: its last progress text.
        error_bases: dotted names of the exception's class and its bases.
        message: the exception's message.
        hint: the exception's hint, where it has one.
        facts: plain data that the exception carries.
        traceback: the last lines of the exception's traceback.
        output: the last lines the child wrote to stdout and stderr.
        signal: name of the signal that killed it.
        exit_code: where it exited by itself.
        peak_bytes: its largest resident memory, as the kernel says.
        duration_s: from the fork to the end.
    """

    status: Status
    records: tuple[Mapping[str, Any], ...] = ()
    cause: str = ""
    kind: str = ""
    doing: str = ""
    error_bases: tuple[str, ...] = ()
    message: str = ""
    hint: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    traceback: str = ""
    output: str = ""
    signal: str | None = None
    exit_code: int | None = None
    peak_bytes: int | None = None
    duration_s: float = 0.0

    def is_a(self, error: type[BaseException]) -> bool:
        """Whether the job raised this exception or a subclass of it."""
        return f"{error.__module__}.{error.__qualname__}" in self.error_bases

    def details(self) -> str:
        """Everything known about a bad end, the most telling first."""
        parts = [self.cause]
        if self.doing and self.status != "raised":
            parts.append(f"it was at: {self.doing}")
        if self.hint:
            parts.append(f"hint: {self.hint}")
        if self.traceback:
            parts.append(self.traceback)
        if self.output:
            parts.append(f"its last output:\n{_indent(self.output)}")
        return "\n".join(parts)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


class Isolation:
    """Forks a child per request. One per pytest worker; close it, or use it in a ``with``.

    Args:
        engine: ``module:function`` that a child calls with each job and an emitter.
        reference_preload: modules imported once for reference jobs.
        subject_preload: modules imported once, on top, for subject jobs.
        threads: how many threads a child computes with.
        import_path: ``sys.path`` of the children.
    """

    def __init__(
        self,
        engine: str = DEFAULT_ENGINE,
        *,
        reference_preload: Sequence[str] = REFERENCE_PRELOAD,
        subject_preload: Sequence[str] = SUBJECT_PRELOAD,
        threads: int = 1,
        import_path: Sequence[str] | None = None,
    ) -> None:
        self._engine = engine
        self._always: tuple[str, ...] = (
            "conformance.jobs",
            "conformance.spec",
            engine.partition(":")[0],
        )
        self._reference_preload = tuple(reference_preload)
        self._subject_preload = tuple(subject_preload)
        self._threads = threads
        self._import_path = tuple(sys.path if import_path is None else import_path)
        self._base: _Server | None = None
        self._subjects: _Server | None = None

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers and whatever they still run. Harmless when repeated."""
        self._drop_subjects()
        if self._base is not None:
            self._base.close()
        self._base = None

    def _drop_subjects(self) -> None:
        if self._subjects is not None:
            self._subjects.close()
        self._subjects = None

    def run(
        self, jobs: Sequence[Job], *, timeout: float, progress: Progress | None = None
    ) -> Outcome:
        """Run jobs, one after the other, in one fresh child.

        Args:
            jobs: subject jobs run where the subjects' library is loaded, others where it is not.
            timeout: seconds for each job, counted from its own start.
            progress: called with each progress text as it arrives.

        Raises:
            IsolationError: no process could be started. What a job does never raises.
        """
        request = forkserver.Run(self._engine, pickle.dumps(tuple(jobs)), self._threads)
        on_top = any(job.kind == "subject" for job in jobs)
        server = self._server_for_subjects() if on_top else self._server()
        if not server.wait_ready():
            server = self._without_preload(on_top)
        return _Child(server, timeout, progress).run(request)

    def _server(self) -> _Server:
        if self._base is None or not self._base.alive():
            self.close()
            preload = (*self._reference_preload, *self._always)
            self._base = _Server.start(preload, self._import_path, self._threads)
            # Asked for now, so that it imports while the first reference runs.
            if self._subject_preload:
                self._subjects = self._base.derive(self._subject_preload)
        return self._base

    def _server_for_subjects(self) -> _Server:
        base = self._server()
        if not self._subject_preload:
            return base
        if self._subjects is None or not self._subjects.alive():
            self._drop_subjects()
            self._subjects = base.derive(self._subject_preload)
        return self._subjects

    def _without_preload(self, on_top: bool) -> _Server:
        """A library whose import kills the process must kill a child, not the server."""
        if on_top:
            self._subject_preload = ()
            self._drop_subjects()
            server = self._server()
            if server.wait_ready():
                return server
        self._reference_preload = self._subject_preload = self._always = ()
        self.close()
        server = self._server()
        if not server.wait_ready():
            raise IsolationError(
                f"the process that forks the children ended at its start\n{server.output()}",
                f"run `{sys.executable} -c 'import conformance.forkserver'`",
            )
        return server


class _Server:
    """The parent's handle on one server process."""

    def __init__(
        self, sock: socket.socket, log: IO[bytes], process: subprocess.Popen[bytes] | None
    ) -> None:
        self.sock = sock
        self.dead = False
        self._log = log
        self._process = process
        self._buffer = b""
        self._ready = False

    @classmethod
    def start(cls, preload: Sequence[str], import_path: Sequence[str], threads: int) -> _Server:
        if not hasattr(os, "fork"):
            raise IsolationError("this platform cannot fork processes", "run on Linux or macOS")
        path = [os.path.abspath(entry) for entry in import_path]  # noqa: PTH100 - "" means here
        code = (
            f"import sys; sys.path[:] = {path!r}; "
            "from conformance.forkserver import main; main(int(sys.argv[1]), sys.argv[2:])"
        )
        environment = {
            # Before any import: these libraries size their thread pools when they are loaded.
            "OMP_NUM_THREADS": str(threads),
            # Threads that spin while they wait for one another slow a shared machine tenfold.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            # Otherwise an import that asks for CUDA makes it unusable after the fork.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            **os.environ,
        }
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno()), *preload],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C is for pytest alone
            )
        except OSError as error:
            ours.close()
            log.close()
            raise IsolationError(f"cannot start Python: {error}", "free some memory") from error
        finally:
            theirs.close()
        return cls(ours, log, process)

    def derive(self, preload: Sequence[str]) -> _Server:
        """Another server, forked from this one, that imports more."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.send(forkserver.Derive(tuple(preload)), [theirs.fileno()])
        return _Server(ours, self._log, None)

    def send(self, request: forkserver.Run | forkserver.Derive, fds: Sequence[int]) -> None:
        body = pickle.dumps(request)
        try:
            socket.send_fds(self.sock, [forkserver.LENGTH.pack(len(body))], fds)
            self.sock.sendall(body)
        except OSError:
            self.dead = True  # found out when an answer is waited for

    def wait_ready(self) -> bool:
        """Wait for the imports; False if the process died of them."""
        deadline = time.monotonic() + _START_S
        while not self._ready and not self.dead:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                for message in self.receive():
                    self._ready = self._ready or message["event"] == "ready"
            except TimeoutError:
                raise IsolationError(
                    f"the libraries were not imported within {_START_S:g} s\n{self.output()}",
                    "import torch, transformers and transformer_lens by hand and see",
                ) from None
            finally:
                self.sock.settimeout(None)
        return not self.dead

    def alive(self) -> bool:
        """Whether the process is still there, as far as its socket tells; does not wait."""
        try:
            if not self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                self.dead = True
        except BlockingIOError:
            pass
        except OSError:
            self.dead = True
        return not self.dead

    def receive(self) -> Iterator[Mapping[str, Any]]:
        """The messages that have arrived; waits for one. At the end of the stream, ``dead``."""
        try:
            data = self.sock.recv(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self.dead = True
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def output(self) -> str:
        """The last lines of what the server itself wrote."""
        return _tail(self._log)

    def close(self) -> None:
        self.dead = True
        self.sock.close()
        if self._process is None:
            return
        if not self._ready:
            self._process.kill()  # it may be importing for long, blind to the socket
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class _Child:
    """One child, from the request to its end."""

    def __init__(self, server: _Server, timeout: float, progress: Progress | None) -> None:
        self._server = server
        self._timeout = timeout
        self._progress = progress
        self._buffer = b""
        self._pid: int | None = None
        self._deadline = time.monotonic() + _START_S
        self._outcome: Outcome | None = None
        self._records: list[Mapping[str, Any]] = []
        self._kind = self._doing = ""
        self._doing_since = self._started = time.monotonic()
        self._exit: Mapping[str, Any] | None = None

    def run(self, request: forkserver.Run) -> Outcome:
        kills = _oom_kills()
        pipe, theirs = os.pipe()
        with tempfile.TemporaryFile() as output:
            try:
                try:
                    self._server.send(request, [theirs, output.fileno()])
                finally:
                    os.close(theirs)
                timed_out = self._follow(pipe)
                self._drain(pipe)
            except BaseException:
                self._server.close()  # what it still has to say is about this child
                raise
            finally:
                os.close(pipe)
                if self._exit is None:  # interrupted, or the server is gone
                    self._kill()
            return self._conclude(timed_out, kills, _tail(output))

    def _follow(self, pipe: int) -> bool:
        """Read until the server says that the child has ended; True if it had to be killed."""
        timed_out = False
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(self._server.sock, selectors.EVENT_READ)
            while self._exit is None and not self._server.dead:
                ready = selector.select(max(0.0, self._deadline - time.monotonic()))
                for key, _ in ready:
                    if key.fileobj is self._server.sock:
                        for message in self._server.receive():
                            self._on_server(message)
                    elif not self._read(pipe):
                        selector.unregister(pipe)
                if not ready and time.monotonic() >= self._deadline:
                    if timed_out or self._pid is None:
                        self._server.close()
                        break
                    timed_out = True
                    self._stop()
        return timed_out

    def _on_server(self, message: Mapping[str, Any]) -> None:
        if message["event"] == "started":
            self._pid = message["pid"]
            self._started = self._doing_since = time.monotonic()
            self._deadline = self._started + self._timeout
        elif message["event"] == "exited":
            self._exit = message
        elif message["event"] == "refused":
            raise IsolationError(
                f"no child process could be forked ({message['text']})",
                "close other programs, or run with fewer workers",
            )

    def _read(self, pipe: int) -> bool:
        data = os.read(pipe, 1 << 20)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            # Not JSON: foreign code wrote to the pipe. A verdict lost to that is missed later.
            with contextlib.suppress(ValueError):
                self._on_child(json.loads(line))
        return bool(data)

    def _drain(self, pipe: int) -> None:
        """What was still in the pipe. A stray grandchild may hold it open: do not wait for EOF."""
        os.set_blocking(pipe, False)
        with contextlib.suppress(BlockingIOError):
            while self._read(pipe):
                pass

    def _on_child(self, message: Mapping[str, Any]) -> None:
        event = message["event"]
        if event == "verdict":
            self._records.append(message["record"])
        elif event == "progress":
            self._doing, self._doing_since = str(message["text"]), time.monotonic()
            if self._progress is not None:
                self._progress(self._doing)
        elif event == "job":
            self._kind, self._doing, self._doing_since = message["kind"], "", time.monotonic()
            self._deadline = self._doing_since + self._timeout
        elif event == "done":
            self._outcome = Outcome("ok")
        elif event == "raised":
            name = (
                str(message["type"]).removeprefix("builtins.").removeprefix("conformance.errors.")
            )
            first, *_ = str(message["message"]).splitlines() or [""]
            self._outcome = Outcome(
                "oom" if message["oom"] else "raised",
                cause=f"{name}: {first}" if first else name,
                error_bases=tuple(message["bases"]),
                message=str(message["message"]),
                hint=message["hint"],
                facts=message.get("facts") or {},
                traceback=str(message["traceback"]),
            )

    def _stop(self) -> None:
        """Ask a hanging child where it is, then end it and everything it started."""
        assert self._pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, forkserver.DUMP_SIGNAL)
            time.sleep(_DUMP_S)
        self._kill()
        self._deadline = time.monotonic() + _END_S

    def _kill(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)

    def _conclude(self, timed_out: bool, kills: int, output: str) -> Outcome:
        now = time.monotonic()
        outcome = self._outcome
        code = None if self._exit is None else int(self._exit["status"])
        if outcome is None and timed_out:
            outcome = Outcome("timeout", cause=f"no end after {self._timeout:g} s, killed")
        elif outcome is None:
            outcome = _died(code, self._pid is not None, _oom_kills() > kills)
        doing = self._doing
        if doing and outcome.status != "ok":
            doing = f"{doing} (for {now - self._doing_since:.1f} s)"
        return replace(
            outcome,
            records=tuple(self._records),
            kind=self._kind,
            doing=doing,
            output="" if outcome.status == "ok" else output,
            peak_bytes=None if self._exit is None else int(self._exit["peak_bytes"]),
            duration_s=now - self._started,
        )


def _died(code: int | None, started: bool, kernel_killed: bool) -> Outcome:
    """A child that ended without a word of its own."""
    if code is None:
        if kernel_killed:
            return Outcome(
                "oom", cause="the kernel's out-of-memory killer ended the forking process"
            )
        when = "while the job ran" if started else "before the job began"
        return Outcome("crashed", cause=f"the process that forks the children died {when}")
    if code >= 0:
        return Outcome("crashed", cause=f"exited with code {code} before the end", exit_code=code)
    name = _signal_name(-code)
    if -code != signal.SIGKILL:
        said = signal.strsignal(-code)
        return Outcome("crashed", cause=f"{name} ({said})" if said else name, signal=name)
    if kernel_killed:
        return Outcome("oom", cause="killed by the kernel, out of memory (SIGKILL)", signal=name)
    return Outcome(
        "crashed",
        cause="SIGKILL from elsewhere; the kernel counted no out-of-memory kill",
        signal=name,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(stream: IO[bytes]) -> str:
    """The last lines of a file; of a progress bar only what a terminal would still show."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL_BYTES))
    text = stream.read().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    telling = [line for line in lines if line and not _OWN_FRAME.match(line)]
    return "\n".join(telling[-_TAIL_LINES:])


def _oom_kills() -> int:
    """How often the kernel's out-of-memory killer has acted, as far as this process can see."""
    files = [Path("/proc/vmstat")]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files.append(Path(f"/sys/fs/cgroup{path}/memory.events"))
            elif "memory" in controllers.split(","):
                files.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            for line in file.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill" and value.strip().isdigit():
                    total += int(value)
    return total
