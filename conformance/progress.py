"""What a person sees while ``conformance run`` runs: a live line, or plain lines in a log."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from conformance.plugin import PROGRESS, TEST
from conformance.report.terminal import WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


class Progress:
    """A pytest plugin: one line for each subject of each model as its last verdict arrives.

    Args:
        console: where to write; the live line appears only on a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.began = False
        self.interrupted = False
        self.internal_error = False
        self.stopped_by = ""
        self._started = False
        self._console = console
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._words: dict[tuple[str, str], list[str]] = {}
        self._running: dict[str, None] = {}
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # pytest's own output stays hidden
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    # --- hooks ---

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[PROGRESS] = self._doing

    def pytest_sessionstart(self) -> None:
        self._started = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        if not self.began:
            self._expect(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        case = _split(nodeid)
        if case is not None:
            self._running[" ".join(case[:2])] = None
            self._describe(", ".join(self._running))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = getattr(report, "conformance_record", None)
        if line is None:
            return
        record = json.loads(line)
        key = (record["model"], record["subject"])
        self._words.setdefault(key, []).append(f"{record['check']} {WORDS[record['outcome']]}")
        self._waiting[key] -= 1
        self._bar.advance(self._task)
        if self._waiting[key] <= 0:
            self._running.pop(" ".join(key), None)
            self._line(" ".join(key), self._words[key])

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.interrupted = excinfo.errisinstance(KeyboardInterrupt)
        if self._started and not self.interrupted:  # before, pytest says it on stderr itself
            self.stopped_by = str(excinfo.value)

    def pytest_internalerror(self) -> None:
        self.internal_error = True

    # --- display ---

    def _expect(self, nodeids: Sequence[str]) -> None:
        cases = [case for nodeid in nodeids if (case := _split(nodeid))]
        if not cases:
            return
        self.began = True
        self._waiting = Counter(case[:2] for case in cases)
        self._bar.update(self._task, total=len(cases))
        models = len({model for model, _, _ in cases})
        self._console.print(
            f"{len(cases)} verdicts to reach on {models} model{'s' if models > 1 else ''}"
        )

    def _doing(self, model: str, subject: str | None, text: str) -> None:
        self._describe(f"{model} {subject or 'reference'}: {text}")

    def _describe(self, text: str) -> None:
        room = max(20, self._console.width - 45)
        shown = text if len(text) <= room else f"{text[: room - 3]}..."
        self._bar.update(self._task, description=escape(shown))

    def _line(self, name: str, words: Sequence[str]) -> None:
        same = {word.rpartition(" ")[2] for word in words}
        if len(same) == 1:
            said = f"{same.pop()} ({len(words)} check{'s' if len(words) > 1 else ''})"
        else:
            said = ", ".join(words)
        self._console.print(f"{name}: {said}", markup=False, soft_wrap=True)


def _split(nodeid: str) -> tuple[str, str, str] | None:
    _, found, rest = nodeid.partition(TEST)
    if not found:
        return None
    model, subject, check = rest.removesuffix("]").split("/")
    return model, subject, check
