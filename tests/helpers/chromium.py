"""Chromium, for the tests that look at pages as people do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def executable() -> str:
    """Return its path; skip the test where there is none, or fail it where there must be one."""
    names = ("chromium", "chromium-browser", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get("DAR_PROBE_REQUIRE_CHROMIUM") == "1":
        pytest.fail("DAR_PROBE_REQUIRE_CHROMIUM=1, and no chromium is installed")
    if found is None:
        pytest.skip("no chromium is installed")
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """Yield a browser of playwright."""
    from playwright.sync_api import sync_playwright

    path = executable()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
