"""A headless Chromium for tests of pages, or a skip that says what is missing."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def chromium() -> Iterator:
    """A driver of selenium that keeps the console's messages.

    Debian's packages `chromium` and `chromium-driver` have what it needs; selenium is in the extra `test`.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra `test`)")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs a browser: Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    # Without a sandbox, because tests run as root in containers; the pages are our own.
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1280,900",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(120)
    try:
        yield browser
    finally:
        browser.quit()
