"""The report in a real browser: quiet console, no page wider than its screen, a ledger that sorts and filters."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from artifact_jobs import render_everything

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

Scheme = Literal["light", "dark"]

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_everything(tmp_path_factory.mktemp("run") / "demo").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000, 1400])
def test_pages_fit_their_screen_without_errors(browser: "Browser", page_uri: str, width: int, scheme: Scheme) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    for name in ("index.html", "table01.html", "figure4.html"):
        page.goto(page_uri.replace("index.html", name))
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.close()


def shown(page: "Page") -> list[str]:
    return page.eval_on_selector_all(".claims tbody tr:not([hidden])", "rows => rows.map((row) => row.id)")


def test_claims_are_sorted_and_filtered(browser: "Browser", page_uri: str) -> None:
    page = browser.new_page()
    page.goto(page_uri)
    assert shown(page) == ["C01", "C02", "C10"]
    verdict = page.get_by_role("columnheader", name="Verdict")
    verdict.get_by_role("button").click()
    assert shown(page) == ["C10", "C01", "C02"]
    assert verdict.get_attribute("aria-sort") == "ascending"
    verdict.get_by_role("button").press("Enter")
    assert shown(page) == ["C02", "C01", "C10"]
    button = page.get_by_role("button", name="1 reproduced")
    button.click()
    assert shown(page) == ["C10"]
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("output").inner_text() == "1 of 3 claims"
    page.reload()
    assert shown(page) == ["C10"], "the filter is part of the address"
    page.get_by_role("button", name="1 reproduced").click()
    page.get_by_role("searchbox").fill("rivals beats")
    assert shown(page) == ["C01"]
    page.close()


def test_claims_are_all_there_without_script(browser: "Browser", page_uri: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_uri)
    assert page.locator(".claims tbody tr:visible").count() == 3
    assert not page.locator(".controls").is_visible()
    context.close()


def test_a_number_leads_to_its_cell(browser: "Browser", page_uri: str) -> None:
    page = browser.new_page()
    page.goto(page_uri)
    page.get_by_role("link", name="Table 1").first.click()
    page.locator("td.value a").first.click()
    opened = page.locator("details[open]")
    assert opened.count() == 1
    assert "digits/at/ask-cos-L3-K5-e8-s20" in opened.locator("summary").inner_text()
    assert "snakemake --cores all --force" in opened.inner_text()
    page.close()


def test_page_has_both_colour_schemes(browser: "Browser", page_uri: str) -> None:
    seen = set()
    schemes: tuple[Scheme, ...] = ("light", "dark")
    for scheme in schemes:
        page = browser.new_page(color_scheme=scheme)
        page.goto(page_uri)
        seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert len(seen) == 2


def test_first_key_press_offers_to_skip_to_the_results(browser: "Browser", page_uri: str) -> None:
    page = browser.new_page()
    page.goto(page_uri)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    page.close()
