"""Every finding in docs/findings still shows as described, or does not apply here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scripts import preloaded, run_script

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

FOLDER = Path(__file__).parent.parent / "docs" / "findings"
REPORTS = sorted(FOLDER.glob("[0-9]*.md"))
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
HEADINGS = (
    "## Describe the bug",
    "## Code example",
    "## System info",
    "## Additional context",
    "## Checklist",
)
CONTEXT = ("Expected", "Actual", "Suspected line", "Affected versions", "Affected checkpoints")


def _script(report: Path) -> Path:
    return report.with_name(report.stem.replace("-", "_") + ".py")


def test_every_finding_has_a_report_and_a_script() -> None:
    assert REPORTS
    assert [_script(report) for report in REPORTS] == SCRIPTS
    numbers = [report.name[:3] for report in REPORTS]
    assert all(number.isdigit() for number in numbers)
    assert len(set(numbers)) == len(numbers), "a number is given once"


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.stem)
def test_report_has_what_the_bug_report_template_asks_for(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0].startswith("# [Bug Report] ")
    assert [line for line in lines if line.startswith("## ")] == list(HEADINGS)
    for part in CONTEXT:
        assert f"- **{part}:**" in text
    assert f"[{_script(report).name}]({_script(report).name})" in text


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return preloaded()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_defect_still_shows(script: Path, context: ForkServerContext, tmp_path: Path) -> None:
    finished = run_script(context, script, tmp_path, timeout=240)
    said = finished.stdout.strip()
    if finished.status == 2:
        pytest.skip(said.splitlines()[-1])
    if "Traceback" in finished.stderr:
        pytest.fail(f"the script itself failed:\n{finished.stderr[-3000:]}")
    if finished.status == 1:
        pytest.fail(
            "the defect no longer shows: update the finding and the expected failure\n" + said
        )
    assert finished.status == 0, f"{said}\n{finished.stderr[-3000:]}"


@pytest.mark.parametrize(
    ("text", "status", "out", "err"),
    [
        ("print('shown')", 0, "shown\n", ""),
        ("import sys; print('absent'); sys.exit(2)", 2, "absent\n", ""),
        ("raise ValueError('its own mistake')", 1, "", "ValueError: its own mistake\n"),
    ],
)
def test_scripts_end_as_they_would_alone(
    text: str, status: int, out: str, err: str, context: ForkServerContext, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(text)
    finished = run_script(context, script, tmp_path, timeout=60)
    assert (finished.status, finished.stdout) == (status, out)
    assert finished.stderr.endswith(err)
    assert ("Traceback" in finished.stderr) == bool(err)


def test_a_script_that_hangs_is_killed(context: ForkServerContext, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(600)")
    with pytest.raises(TimeoutError, match=r"script\.py had not ended after 1 s"):
        run_script(context, script, tmp_path, timeout=1)
