"""Models that the fake engine understands, and runs of the suite on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.checkpoints.twin_catalogue import TWINS
from conformance.records import Records, Verdict, read
from conformance.spec import ModelSpec, TwinSource

ROOT = Path(__file__).parent.parent
#: Waits a little for something that another process does.
Eventually = Callable[[Callable[[], bool]], bool]


def fake_model(name: str, **fields: object) -> ModelSpec:
    """An entry whose id the fake engine understands."""
    return ModelSpec.model_validate(
        {
            "id": name,
            "architecture": "GPT2LMHeadModel",
            "source": TwinSource(twin="gpt2"),
            **fields,
        }
    )


def models_toml(
    names: Sequence[str], extra: str = "", subjects: str = '["bridge"]', top: str = ""
) -> str:
    """A valid file; ``extra`` continues the table of the last model, ``top`` the top of it."""
    twin = next(iter(TWINS))
    entries = [
        f'[[model]]\nid = "{name}"\narchitecture = "GPT2LMHeadModel"\n'
        f'subjects = {subjects}\nsource = {{twin = "{twin}"}}\n'
        for name in names
    ]
    return "\n".join(["schema = 1", top, *entries, extra])


#: A link that needs no file.
LINK = "https://example.org/1"


def shows(check: str, *models: str, subject: str = "bridge", **fields: object) -> dict[str, object]:
    """One place where a defect shows, for :func:`defect`."""
    return {"subject": subject, "check": check, "models": list(models), **fields}


def defect(*places: Mapping[str, object], **fields: object) -> str:
    """A ``[[defect]]`` of a ledger, one line for each place where it shows."""
    rows = [", ".join(f"{key} = {json.dumps(value)}" for key, value in p.items()) for p in places]
    listed = "".join(f"  {{ {row} }},\n" for row in rows)
    given = {"reason": "known", "link": LINK, **fields}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())
    return f"[[defect]]\n{lines}shows = [\n{listed}]\n"


def ledger_toml(*defects: str) -> str:
    """A whole ledger."""
    return "\n".join(["schema = 1\n", *defects])


def environment(**changes: str) -> dict[str, str]:
    """For processes that a test starts: the fake engine, and nothing of the run we are in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "CONFORMANCE_"))}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "CONFORMANCE_ENGINE": "fake_engine:run_job",
        "COLUMNS": "100",
        # Plugins that happen to be installed are not what is tested, and some are slow to import.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        **changes,
    }


@dataclass(frozen=True)
class Finished:
    """A run of the suite that has ended."""

    folder: Path
    code: int
    output: str

    @property
    def records(self) -> Records:
        return read(self.folder / "conformance-out" / "records.jsonl")

    @property
    def verdicts(self) -> Mapping[tuple[str, str, str], Verdict]:
        return {(v.model, v.subject, v.check): v for v in self.records.verdicts}


PYTEST = (
    sys.executable,
    *("-m", "pytest", "-p", "xdist", "-p", "conformance.plugin", "-p", "no:cacheprovider"),
)
SUITE_COMMAND = (*PYTEST, "--pyargs", "conformance.suite")


def heed_interrupts() -> None:
    """For ``preexec_fn``: what a shell starts in the background inherits a deaf ear for SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_suite(folder: Path, *args: str, **changes: str) -> Finished:
    """Run the suite as a user does, in a folder that holds a models.toml."""
    return run(folder, *SUITE_COMMAND, *args, **changes)


def run(folder: Path, *command: str, **changes: str) -> Finished:
    """Run any command in a folder."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return Finished(folder, done.returncode, done.stdout)
