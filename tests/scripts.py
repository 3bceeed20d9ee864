"""Scripts run as if by ``python script.py``, in a process that has the libraries imported already.

Importing them takes longer than most scripts do.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext
    from pathlib import Path

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Finished:
    """What a script said, and its exit status; negative if a signal ended it."""

    status: int
    stdout: str
    stderr: str


def preloaded() -> ForkServerContext:
    """Processes forked from one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "transformer_lens"])
    with mock.patch.dict(os.environ, _ENVIRONMENT):
        forkserver.ensure_running()
    return context


def run_script(context: ForkServerContext, script: Path, folder: Path, timeout: float) -> Finished:
    """Run a script to its end.

    Raises:
        TimeoutError: it had not ended; it is killed.
    """
    out, err = folder / "stdout", folder / "stderr"
    process = context.Process(target=_run, args=(str(script), str(out), str(err)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{script} had not ended after {timeout:.0f} s\n{err.read_text()}")
    return Finished(process.exitcode, out.read_text(), err.read_text())


def _run(script: str, out: str, err: str) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    # The names of a process that was not started by a script are bound to what it had.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    warnings.simplefilter("ignore")
    sys.argv = [script]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
