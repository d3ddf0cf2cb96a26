"""The built pages in a browser whose network is off: nothing asked for, nothing broken, nothing too wide."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as chromium
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
PHONE = 390

pytestmark = pytest.mark.skipif(
    chromium.find() is None, reason="no Chromium here: apt-get install chromium (Debian), brew install chromium (macOS)"
)


def documents() -> list[str]:
    """The names of all pages, in the order of the table of contents."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from walk(value)
        elif isinstance(node, list):
            for item in node:
                yield from walk(item)

    return list(walk(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))))


PAGES = documents()
CHAPTERS = [name for name in PAGES if (ROOT / "book" / f"{name}.ipynb").exists()]


@pytest.fixture(scope="module", autouse=True)
def _book() -> None:
    """The book as `make book` builds it."""
    command = ["make", "--no-print-directory", "pages", f"RUN={sys.executable}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode != 0:
        pytest.fail(run.stdout + run.stderr, pytrace=False)


@pytest.fixture(scope="module")
def browser(_book: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def complaints(browser: chromium.Browser) -> list[str]:
    """Exceptions, error messages and failed requests since the page was opened."""
    browser.evaluate("1")  # what was reported until now has arrived
    found = browser.reported("Runtime.exceptionThrown", lambda p: str(p["exceptionDetails"]))
    found += browser.reported("Log.entryAdded", lambda p: p["entry"]["text"] if p["entry"]["level"] == "error" else "")
    found += browser.reported("Runtime.consoleAPICalled", lambda p: str(p["args"]) if p["type"] == "error" else "")
    found += browser.reported("Network.loadingFailed", lambda p: p["errorText"])
    return [text for text in found if text]


def outside_requests(browser: chromium.Browser) -> list[str]:
    urls = browser.reported("Network.requestWillBeSent", lambda p: str(p["request"]["url"]))
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "about:"))]


def broken_formulas(browser: chromium.Browser) -> list[str]:
    """Formulas that were not set, were set as an error or with nothing in them, or begin left of the page."""
    script = """[...document.querySelectorAll('.math')].filter(formula => {
        const set = formula.querySelector('mjx-container');
        return !set || set.querySelector('[data-mml-node="merror"]') || set.querySelector('svg').childElementCount === 0
               || set.getBoundingClientRect().height === 0 && set.offsetParent !== null
               || set.getBoundingClientRect().left < -1;
    }).map(formula => formula.textContent.slice(0, 80))"""
    return list(browser.evaluate(script))


def broken_images(browser: chromium.Browser) -> list[str]:
    """Images that did not load or say nothing to those who cannot see them, after scrolling through the page."""
    script = """(async () => {
        const images = [...document.querySelectorAll('main img')];
        for (const image of images) { image.loading = 'eager'; await image.decode().catch(() => null); }
        return images.filter(i => i.naturalWidth === 0 || !i.alt || /^_?images|[.](png|svg|gif)$/.test(i.alt))
                     .map(i => i.src + ' alt=' + i.alt);
    })()"""
    return list(browser.evaluate(script))


def too_wide(browser: chromium.Browser) -> list[str]:
    """What makes the page scroll sideways: nothing, if the page does not."""
    script = """(() => {
        const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width && document.body.scrollWidth <= width) return [];
        return [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > width + 1)
               .map(e => e.tagName + '.' + e.className).slice(0, 5).concat(['page wider than the window']);
    })()"""
    return list(browser.evaluate(script))


VIEWS = [(1280, False), (1280, True), (PHONE, True), (PHONE, False)]


@pytest.mark.parametrize("name", PAGES)
def test_page(browser: chromium.Browser, name: str) -> None:
    """Loaded once, seen at two widths in both themes: the page follows the window and the reader's system."""
    browser.open(HTML / f"{name}.html")
    for width, dark in VIEWS:
        browser.view(width=width, dark=dark)
        browser.wait_for(f"document.documentElement.dataset.theme === '{'dark' if dark else 'light'}'")
        assert broken_formulas(browser) == [], (width, dark)
        assert broken_images(browser) == [], (width, dark)
        assert too_wide(browser) == [], (width, dark)
    assert complaints(browser) == []
    assert outside_requests(browser) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_can_be_opened_in_colab_and_downloaded(browser: chromium.Browser, name: str) -> None:
    browser.open(HTML / f"{name}.html")
    links = browser.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href') || '')")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    repository = config["url"].removeprefix("https://github.com/")
    file = f"{config['path_to_book']}/{name}.ipynb"
    assert (ROOT / file).exists()
    assert f"https://colab.research.google.com/github/{repository}/blob/{config['branch']}/{file}" in links
    (download,) = {link for link in links if link.endswith(f"{name}.ipynb") and "://" not in link}
    assert (HTML / download).read_bytes() == (ROOT / file).read_bytes()


def test_search_finds_a_page(browser: chromium.Browser) -> None:
    browser.open(HTML / "search.html")
    browser.evaluate("Search.performSearch('hutchinson')")
    browser.wait_for("document.querySelectorAll('#search-results li a').length > 0")
    found = browser.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))")
    assert any("divergence" in link for link in found)


# The checks themselves, on a page that has every fault ---------------------------------------------------------------


def test_the_checks_see_what_is_wrong_with_a_bad_page(browser: chromium.Browser, tmp_path: Path) -> None:
    shutil.copytree(HTML / "mathjax", tmp_path / "mathjax")
    (tmp_path / "bad.html").write_text(
        """<!DOCTYPE html><html><head><script src="mathjax/tex-svg-full.js"></script></head><body><main>
        <div class="math">\\[ \\frac{1}{ \\]</div><div class="math">never set</div>
        <img src="missing.png" alt="A picture that is not there"><p style="width: 2000px">wide</p>
        <script src="http://example.invalid/script.js"></script><script>console.error("broken")</script>
        <script>undefined_function()</script></main></body></html>""",
        encoding="utf-8",
    )
    browser.open(tmp_path / "bad.html", width=PHONE)
    assert len(broken_formulas(browser)) == 2
    assert len(broken_images(browser)) == 1
    assert too_wide(browser)
    said = " ".join(complaints(browser))
    assert "undefined_function" in said
    assert "broken" in said
    assert "ERR_FILE_NOT_FOUND" in said
    assert outside_requests(browser) == ["http://example.invalid/script.js"]
