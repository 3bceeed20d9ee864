"""A headless Chromium for tests: pages are opened from a disk, as a person would."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

#: Where screenshots are kept; a folder of the test run's own where it is not set.
ARTIFACTS = "CONFORMANCE_ARTIFACTS"
#: Width and height of what people look with.
SIZES = {"desktop": (1440, 1000), "phone": (375, 812)}
_PATIENCE_S = 600
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ADVICE = "apt-get install --no-install-recommends chromium chromium-driver"


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """A browser of its own; without one, tests are skipped, except in continuous integration."""
    binary = next(filter(None, map(shutil.which, _NAMES)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = f"no Chromium with its driver: {_ADVICE}"
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(missing)
        pytest.fail(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *("no-first-run", "no-default-browser-check", "hide-scrollbars"),
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(_PATIENCE_S)  # a machine may have other work
    try:
        yield browser
    finally:
        browser.quit()


class Viewer:
    """One browser, with what tests ask of it."""

    def __init__(self, browser: Chrome, artifacts: Path) -> None:
        self.browser, self._artifacts = browser, artifacts
        artifacts.mkdir(parents=True, exist_ok=True)

    def open(self, page: Path, size: str = "desktop", *, dark: bool = False, at: str = "") -> None:
        """Open a page afresh."""
        width, height = SIZES[size]
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == "phone",
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.browser.get("about:blank")
        self.browser.get(page.as_uri() + at)

    def _command(self, name: str, **given: Any) -> Any:
        return self.browser.execute_cdp_cmd(name, given)

    def run(self, script: str, *given: Any) -> Any:
        """The value of a script's ``return``."""
        return self.browser.execute_script(script, *given)

    def texts(self, selector: str) -> list[str]:
        """What is shown of every element that a selector finds, one line each."""
        script = """return Array.from(document.querySelectorAll(arguments[0]))
            .filter(e => e.offsetParent !== null)
            .map(e => e.innerText.replace(/\\s+/g, ' ').trim())"""
        return list(self.run(script, selector))

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def choose(self, field: str, text: str) -> None:
        """Choose an option of a select by its text."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.select import Select

        Select(self.browser.find_element(By.ID, field)).select_by_visible_text(text)

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def errors(self) -> list[dict[str, Any]]:
        """What the console said since it was last asked: nothing, on a page that is all right."""
        return list(self.browser.get_log("browser"))  # type: ignore[no-untyped-call]

    def picture(self, name: str, *, whole: bool = False) -> Path:
        """Keep a screenshot."""
        if whole:
            width, height = self.run(
                "return [innerWidth, Math.min(8000, document.documentElement.scrollHeight)]"
            )
            self._command(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
        path = self._artifacts / f"{name}.png"
        assert self.browser.save_screenshot(str(path))
        return path

    def printed(self, name: str) -> bytes:
        """Keep the page as PDF."""
        self._command("Emulation.setEmulatedMedia", media="", features=[])
        found = self._command("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        data = base64.b64decode(found["data"])
        self._artifacts.joinpath(f"{name}.pdf").write_bytes(data)
        return data
