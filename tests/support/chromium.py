"""A page in a real browser, and what the browser had to say about it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_QUIETLY = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


def missing() -> str | None:
    """Why no browser can be started here; None where one can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if importlib.util.find_spec("selenium") is None:
        absent.append("selenium")
    return f"{', '.join(absent)} not installed" if absent else None


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """Headless, with a new `profile`, and keeping a log of its console and of its requests."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in (*_QUIETLY, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The path is given, or selenium would ask a network where the driver is.
    browser = Chrome(options, ChromeService(shutil.which("chromedriver")))
    try:
        browser.set_page_load_timeout(30)
        yield browser
    finally:
        browser.quit()


def console(browser: Chrome) -> list[dict[str, Any]]:
    """What its console says since this was last asked: errors, warnings and refusals."""
    return browser.get_log("browser")


def requests(browser: Chrome) -> list[str]:
    """The addresses that it asked for since this was last asked."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]


def view(browser: Chrome, width: int, scheme: str = "light") -> None:
    """A window `width` pixels wide, on a device that is set to `scheme`, light or dark."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
