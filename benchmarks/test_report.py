"""How long the pages of the whole catalogue take to write, and the first one to open.

136 architectures, all checks, two subjects: ``make bench`` prints both. The browser's own clock
tells when the page was loaded and its script had run, and how much processor time that took (what
matters where a machine has other work); it is to stay under two seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Viewer, chromium
from made_report import catalogue, write_run

from conformance.report.html.pages import write

if TYPE_CHECKING:
    import pytest
    from pytest_benchmark.fixture import BenchmarkFixture


def test_writing_the_catalogue(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    file = write_run(catalogue(), tmp_path)
    first = benchmark.pedantic(write, (file,), rounds=1)
    size = sum(path.stat().st_size for path in first.parent.rglob("*") if path.is_file())
    print(
        f"\n136 architectures: {size / 1e6:.1f} MB, first page {first.stat().st_size / 1e6:.2f} MB"
    )


def test_opening_the_catalogue(
    benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = write(write_run(catalogue(), tmp_path_factory.mktemp("run")))
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        viewer = Viewer(browser, tmp_path_factory.mktemp("artifacts"))
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        benchmark.pedantic(viewer.open, (first,), rounds=5)
        times = viewer.run("return performance.getEntriesByType('navigation')[0].toJSON()")
        spent = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        work = next(one["value"] for one in spent if one["name"] == "TaskDuration")
        assert len(viewer.texts("#matrix tbody tr")) == 272
    print(
        f"\nits script had run after {times['domContentLoadedEventEnd']:.0f} ms, "
        f"loaded after {times['loadEventEnd']:.0f} ms, {1000 * work:.0f} ms of processor time"
    )
