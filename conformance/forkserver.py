"""The process that imports the libraries once and forks one child per job.

Started by :mod:`conformance.isolation` with ``python -c``; never imported by the suite itself.
It uses the standard library only and runs one child at a time. Its parent's end of the socket
is the only thing that keeps it alive: when that closes, it kills its child and exits, so that
no interrupted run leaves a process behind.

Parent to server: a 4-byte length, sent with file descriptors attached, then a pickle.
Server to parent, and child to parent through a pipe: one JSON object per line.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    _Engine = Callable[[Any, Callable[[Mapping[str, Any]], None]], None]

LENGTH = struct.Struct("!I")
#: What the parent sends to a child that hangs, to see where; the dump goes to its stderr.
DUMP_SIGNAL = signal.SIGUSR2
_MAX_FDS = 2
_TRACEBACK_LINES = 40
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
)


@dataclass(frozen=True, slots=True)
class Run:
    """Ask for one child. Comes with the write end of a pipe and a file for its output."""

    engine: str
    jobs: bytes
    threads: int


@dataclass(frozen=True, slots=True)
class Derive:
    """Ask for another server, forked from this one, that imports more. Comes with its socket."""

    preload: tuple[str, ...]


def main(fd: int, preload: Sequence[str]) -> NoReturn:
    """Entry point of the server process."""
    _serve(socket.socket(fileno=fd), preload)


def _serve(sock: socket.socket, preload: Sequence[str]) -> NoReturn:
    for name in preload:
        # A library that cannot be imported fails again, with its message, in the job's child.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # fewer pages to copy when children collect garbage
    _Server(sock).loop()


class _Server:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._child: int | None = None
        self._derived: set[int] = set()
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        self._wake_w = wake_w
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)

    def loop(self) -> NoReturn:
        self._send({"event": "ready"})
        while True:
            ready, _, _ = select.select([self._sock.fileno(), self._wake_r], [], [])
            if self._wake_r in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_r, 4096)
                self._reap()
            if self._sock.fileno() in ready:
                self._accept()

    def _accept(self) -> None:
        try:
            head, fds, _, _ = socket.recv_fds(self._sock, LENGTH.size, _MAX_FDS)
        except ConnectionError:
            head, fds = b"", []
        if not head:
            self._exit()
        body = self._sock.recv(LENGTH.unpack(head)[0], socket.MSG_WAITALL)
        request: Run | Derive = pickle.loads(body)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"event": "refused", "text": f"fork: {error.strerror}"})
        else:
            if pid == 0:
                self._in_child(request, fds)
            if isinstance(request, Run):
                with contextlib.suppress(OSError):  # the child does it too; whoever is first
                    os.setpgid(pid, pid)
                self._child = pid
                self._send({"event": "started", "pid": pid})
            else:
                self._derived.add(pid)
        for fd in fds:
            os.close(fd)

    def _in_child(self, request: Run | Derive, fds: Sequence[int]) -> NoReturn:
        server = os.getppid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._sock.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        if isinstance(request, Derive):
            _serve(socket.socket(fileno=fds[0]), request.preload)
        try:
            _run(request, fds[0], fds[1], server)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        for pid in list(self._derived):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._derived.discard(pid)
        if self._child is None:
            return
        if hasattr(os, "waitid"):
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self._child, flags) is None:
                return
            # Before the child is reaped its process group cannot be anyone else's.
            _kill_group(self._child)
        pid, status, usage = os.wait4(self._child, os.WNOHANG)
        if pid == 0:
            return
        if not hasattr(os, "waitid"):
            _kill_group(pid)
        self._child = None
        unit = 1 if sys.platform == "darwin" else 1024
        self._send(
            {
                "event": "exited",
                "status": os.waitstatus_to_exitcode(status),
                "peak_bytes": usage.ru_maxrss * unit,
            }
        )

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._exit()

    def _exit(self) -> NoReturn:
        if self._child is not None:
            _kill_group(self._child)
        os._exit(0)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _run(request: Run, pipe: int, output: int, server: int) -> NoReturn:
    """The life of a child: run the jobs, send what they say, say how it ended."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    _die_with(server)
    _capture(output)
    faulthandler.enable(file=2)
    faulthandler.register(DUMP_SIGNAL, file=2, all_threads=True)
    _limit_threads(request.threads)
    channel = _Channel(pipe)
    try:
        engine = _load(request.engine)
        for job in pickle.loads(request.jobs):
            channel.send({"event": "job", "kind": job.kind})
            engine(job, channel.emit)
    except BaseException as error:
        channel.send(_describe(error))
    else:
        channel.send({"event": "done"})
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _die_with(server: int) -> None:
    """Leave nothing behind if the server is killed, and be the first to go if memory runs out."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123
        stream.write("500")


def _capture(output: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _load(path: str) -> _Engine:
    module, _, name = path.partition(":")
    engine: _Engine = getattr(importlib.import_module(module), name)
    return engine


class _Channel:
    """The child's end of the pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def emit(self, message: Mapping[str, Any]) -> None:
        """What the engine is given. Raises at once if it is handed anything but plain data."""
        if message.get("event") not in ("progress", "verdict"):
            raise ValueError(f"an engine emits progress and verdicts, not {message!r}")
        self.send(message)

    def send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._fd, line) :]


def _describe(error: BaseException) -> dict[str, Any]:
    """An exception as plain text: nothing of it crosses the pipe as an object."""
    message, hint = getattr(error, "message", None), getattr(error, "hint", None)
    facts = getattr(error, "facts", None)
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {
        "event": "raised",
        "type": _name(type(error)),
        "bases": [_name(base) for base in type(error).__mro__],
        "message": message if isinstance(message, str) else str(error),
        "hint": hint if isinstance(hint, str) else None,
        "facts": facts if isinstance(facts, dict) else {},
        "traceback": "\n".join(lines[-_TRACEBACK_LINES:]),
        "oom": _is_out_of_memory(error),
    }


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Also when the error that says so is the cause of the one that arrived."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, MemoryError):
            return True
        text = str(current).lower()
        if isinstance(current, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY):
            return True
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    return False
