"""A headless Chromium that opens a page, counts what it asks for, and is used by name of its elements."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync",
)  # fmt: skip


def program() -> str | None:
    """The browser of this machine; None if it, or the driver of it, is not installed."""
    names = ("chromium", "google-chrome") if shutil.which("chromedriver") else ()
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One window. `driver` is selenium's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._page = ""

    def show(self, page: Path | str) -> None:
        """Open a file or an address."""
        self._page = page if isinstance(page, str) else page.as_uri()
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.get(self._page)

    def resize(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *values: object) -> Any:
        return self.driver.execute_script(script, *values)

    def wait(self, script: str, seconds: float = 5) -> None:
        """Wait until a script returns something true."""
        end = time.monotonic() + seconds
        while not self.run(script) and time.monotonic() < end:
            time.sleep(0.02)

    def text(self, name: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).innerText", name))

    def texts(self, selector: str) -> list[str]:
        found = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
        return list(self.run(found, selector))

    def choose(self, name: str, value: str) -> float:
        """Choose an option; return the milliseconds until the page shows what it stands for."""
        return self._timed(name, "one.value = value; one.dispatchEvent(new Event('change'))", value)

    def type(self, name: str, value: str) -> float:
        """Replace the text of a field; return milliseconds as `choose`."""
        return self._timed(name, "one.value = value; one.dispatchEvent(new Event('input'))", value)

    def click(self, name: str) -> float:
        """Click a button; return milliseconds as `choose`."""
        return self._timed(name, "one.click()", "")

    def _timed(self, name: str, action: str, value: str) -> float:
        script = (
            "const [name, value] = arguments, one = document.getElementById(name), start = performance.now();"
            f"{action}; document.body.offsetHeight; return performance.now() - start"
        )
        return float(self.run(script, name, value))

    def press(self, key: str) -> None:
        """Press a key of the keyboard, where the focus is."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).send_keys(getattr(Keys, key, key)).perform()

    def requests(self) -> list[str]:
        """The addresses that the page has asked for, without its own."""
        messages = (
            json.loads(one["message"])["message"] for one in self.driver.get_log("performance")
        )
        asked = (
            one["params"]["request"]["url"]
            for one in messages
            if one["method"] == "Network.requestWillBeSent"
        )
        return [address for address in asked if address != self._page]

    def errors(self) -> list[str]:
        """What stands on the console: errors, and what the page's policy has stopped."""
        return [one["message"] for one in self.driver.get_log("browser")]

    def violations(self, folder: Path) -> list[str]:
        """What axe, whose package lies in a folder, calls serious or critical."""
        (script,) = folder.rglob("axe.min.js")
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": script.read_text("utf-8")})
        call = "axe.run(document, {resultTypes: ['violations']})"
        found = self.driver.execute_async_script(f"const done = arguments[0]; {call}.then(done)")
        return [
            f"{one['id']}: {node['html'][:150]} {node.get('failureSummary', '')}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"][:3]
        ]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(program())
    for option in _OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
