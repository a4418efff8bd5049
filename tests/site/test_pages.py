"""The built site as a reader has it: links, and the main pages in Chromium, wide and narrow, light and dark.

    sphinx-build docs SITE && MINILORA_SITE=SITE pytest -m slow tests/site/test_pages.py

Nothing is fetched from the web: the browser's requests are answered from the site's folder, and MathJax from npm. In
each page axe-core looks for text of too little contrast, and for what has no name: pictures, links, fields, the page.
"""

import os
import re
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

pytestmark = pytest.mark.slow

HOST = "http://minilora.test/"
PAGES = ["index", "tutorial", "lessons/05_lora", "api/lora", "kernels", "errata", "experiments/lora-table5"]
SIZES = [(1280, 900), (390, 844)]
RULES = ["color-contrast", "image-alt", "svg-img-alt", "document-title", "label", "link-name"]
CONTRAST = 4.5  # WCAG 2.2, 1.4.3; axe-core does not look into SVG
AXE = "axe-core@4.14.1"
BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>'  # in place of Colab's
AXE_FINDS = """async rules => {
    if (window.MathJax?.startup) await MathJax.startup.promise
    const found = await axe.run(document, {runOnly: {type: "rule", values: rules}})
    return found.violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 200)} ${n.any[0]?.message}`))
}"""
FAINT_LETTERS = """least => {
    const channels = colour => (colour.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number)
    const over = (top, below, opacity) => {
        const a = (top[3] ?? 1) * opacity
        return below.map((v, i) => a * top[i] + (1 - a) * v)
    }
    const light = c => c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + [0.2126, 0.7152, 0.0722][i] * v, 0)
    const ground = node => {
        const behind = node.parentElement ? ground(node.parentElement) : [255, 255, 255]
        return over(channels(getComputedStyle(node).backgroundColor), behind, 1)
    }
    const found = []
    for (const picture of document.querySelectorAll(".cell_output svg")) {
        const boxes = [...picture.querySelectorAll("rect")].filter(b => getComputedStyle(b).fill != "none")
        for (const text of picture.querySelectorAll("text")) {
            const at = text.getBoundingClientRect(), x = at.x + at.width / 2, y = at.y + at.height / 2
            let below = ground(picture)
            for (const box of boxes) {
                const b = box.getBoundingClientRect(), style = getComputedStyle(box)
                const beneath = box.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING
                if (beneath && b.left < x && x < b.right && b.top < y && y < b.bottom)
                    below = over(channels(style.fill), below, style.opacity * style.fillOpacity)
            }
            const style = getComputedStyle(text)
            const two = [light(over(channels(style.fill), below, style.opacity * style.fillOpacity)), light(below)]
            const contrast = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05)
            if (at.width && contrast < least) found.push(`picture: ${text.textContent} ${contrast.toFixed(2)}`)
        }
    }
    return found
}"""


@pytest.fixture(scope="module")
def site() -> Path:
    if not os.environ.get("MINILORA_SITE"):
        pytest.skip("MINILORA_SITE is not set; build the site (sphinx-build docs SITE) and set it to SITE")
    return Path(os.environ["MINILORA_SITE"]).resolve()


class Links(HTMLParser):
    """A page's links and pictures, and the places in it that a link can name."""

    def __init__(self, page: Path):
        super().__init__()
        self.places, self.links = set(), []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag, name) == ("a", "name"):
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def test_every_link_inside_the_site_leads_somewhere(site):
    read = cache(Links)
    dead = []
    for page in sorted(set(site.rglob("*.html")) - set((site / "_static").rglob("*"))):  # the theme's own
        for link in read(page).links:
            there = urlsplit(urljoin(HOST + page.relative_to(site).as_posix(), link))
            if not there.geturl().startswith(HOST):
                continue
            target = site / unquote(there.path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            lost = target.suffix == ".html" and there.fragment and unquote(there.fragment) not in read(target).places
            if not target.is_file() or lost:
                dead.append(f"{page.relative_to(site)}: {link}")
    assert not dead, "\n".join(dead)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing (pip install playwright)")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is missing (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def answer(site, npm):
    """What a request of a page gets: a file of the site, or of a package that jsDelivr serves from npm."""

    def serve(route):
        url = urlsplit(route.request.url)
        package = re.fullmatch(r"/npm/((?:@[^/]+/)?[^/]+)/(.+)", url.path)
        if url.geturl().startswith(HOST):
            file = site / unquote(url.path).lstrip("/")
        elif url.netloc == "cdn.jsdelivr.net" and package:
            file = npm(package[1]) / package[2]
        elif url.path.endswith("colab-badge.svg"):
            return route.fulfill(body=BADGE, content_type="image/svg+xml")
        else:
            return route.abort()
        return route.fulfill(path=file) if file.is_file() else route.fulfill(status=404)

    return serve


def look(tab, page: str, npm) -> list[str]:
    """What is wrong with a page in this tab."""
    wrong = []
    tab.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    tab.goto(f"{HOST}{page}.html")
    tab.add_script_tag(path=npm(AXE) / "axe.min.js")
    wrong += tab.evaluate(AXE_FINDS, RULES) + tab.evaluate(FAINT_LETTERS, CONTRAST)
    there, needed = tab.viewport_size["width"], tab.evaluate("document.documentElement.scrollWidth")
    return wrong + [f"{needed} px wide where {there} are there"] * (needed > there)


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_chromium(page, colours, browser, answer, site, npm):
    assert (site / f"{page}.html").is_file()
    wrong = []
    for width, height in SIZES:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
        context.route("**/*", answer)
        tab = context.new_page()
        wrong += [f"{width} px, {what}" for what in look(tab, page, npm)]
        if folder := os.environ.get("MINILORA_SCREENSHOTS"):  # to look at
            tab.screenshot(path=f"{folder}/{page.replace('/', '-')}-{colours}-{width}.png", full_page=True)
        context.close()
    assert not wrong, "\n".join(wrong)
