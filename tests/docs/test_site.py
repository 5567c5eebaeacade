"""The site: it builds without a warning, its links lead somewhere, and a browser can use it."""

import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers import chromium

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("sphinx")
OPENED = [
    "index.html", "tutorials/first-analysis.html", "how-to/diffusers-model.html",
    "reference/cli.html", "explanation/gates.html", "gallery/dilution.html",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site") / "html"
    # Cells of the tutorials run in test_pages.py, in a process that has imported torch already.
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-D", "nb_execution_mode=off",
         "-D", "suppress_warnings=myst-nb.lexer",  # a kernel would tell the language
         str(ROOT / "docs"), str(target)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return target


class Links(HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value and tag in ("a", "img"):
                self.links.append(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def test_every_internal_link_leads_somewhere(site):
    pages = {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(pages) > 60
    broken = []
    for page, found in pages.items():
        if "reports" in page.relative_to(site).parts[:1]:
            continue  # whole report pages, which have tests of their own
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith(("#", "data:")):
                if link.startswith("#") and len(link) > 1 and link[1:] not in found.anchors:
                    broken.append((str(page.relative_to(site)), link))
                continue
            target = (page.parent / unquote(parts.path)).resolve()
            anchors = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and parts.fragment not in anchors):
                broken.append((str(page.relative_to(site)), link))
    assert broken == []


def test_addresses_of_errors_are_on_the_site(site):
    from dar_probe.errors import anchor

    text = (site / "reference" / "errors.html").read_text(encoding="utf-8")
    assert f'id="{anchor("files.kinds")}"' in text


@pytest.fixture(scope="module")
def address(site):
    """The site as a server gives it: pages of files may not fetch each other."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_browser_reads_searches_and_changes_the_theme(address):
    with chromium.launched() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        faults = []
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        # Versions of the site are listed on the web, which is not there.
        page.route(re.compile("^https:"), lambda route: route.fulfill(json=[]))
        for name in OPENED:
            page.goto(f"{address}/{name}")
            assert page.locator("h1").first.inner_text().strip(" #"), name
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 1280, name
        page.set_viewport_size({"width": 360, "height": 800})
        for name in OPENED:
            page.goto(f"{address}/{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(f"{address}/search.html?q=redundancy")
        page.wait_for_selector("#search-results li a")
        assert "Metrics and limits" in page.locator("#search-results").inner_text()
        page.goto(f"{address}/index.html")
        for theme in ("dark", "light"):
            page.locator("button.theme-switch-button:visible").first.click()
            page.locator(f"[data-mode='{theme}']:visible").last.click()
            assert page.evaluate("document.documentElement.dataset.theme") == theme
        assert faults == []
