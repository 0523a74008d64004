"""The page in a real browser: Chromium, driven by Playwright. `make test-browser` runs these."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from made_results import (
    FAILED,
    HOSTILE,
    bench_row,
    make_all,
    make_bench,
    make_run,
    make_verification,
    verify_row,
)

from adadelta_cli.report.page import write_page
from adadelta_cli.report.read import read_folders

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright: make test-browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt install chromium"),
]
READY = "html[data-ready]"
BIG_MB, BIG_S = 5.0, 2.0  # what the page of 500 runs may take


@pytest.fixture(scope="module")
def chromium():
    """Return the browser, which has no network here."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The page of a result of each command, with a hostile name."""
    folder = tmp_path_factory.mktemp("results")
    make_all(folder, HOSTILE)
    make_run(folder / "img", '"><img src=x onerror=alert(1)>', rate=0.25)
    return write_page(folder / "report.html", read_folders([folder]))


class Opened:
    """A page, with all that the browser complained of, requested and alerted."""

    def __init__(self, chromium, path, **settings):
        self.context = chromium.new_context(**settings)
        self.page = self.context.new_page()
        self.complaints, self.requests, self.alerts = [], [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on(
            "dialog", lambda dialog: (self.alerts.append(dialog.message), dialog.dismiss())
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(READY)

    def draw_all(self):
        """Scroll to each chart that is shown, and wait until it is drawn."""
        for chart in self.page.locator(".chart:visible").all():
            chart.scroll_into_view_if_needed()
            chart.locator("svg.main-svg").first.wait_for()


@pytest.fixture
def opened(chromium, path):
    """The page, opened."""
    opened = Opened(chromium, path)
    yield opened
    opened.context.close()


@pytest.fixture
def page(opened):
    """Playwright's page."""
    return opened.page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_complaint_no_request_no_alert(chromium, path, scheme):
    """All charts drawn: the console is empty, nothing but the file was read, no name ran."""
    opened = Opened(chromium, path, color_scheme=scheme)
    opened.draw_all()
    assert opened.page.locator("svg.main-svg").count() >= 6
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()]
    assert opened.alerts == []
    assert opened.page.locator("main img, td script, svg script").count() == 0
    assert HOSTILE in opened.page.locator("[data-table=runs] tbody").inner_text()
    opened.context.close()


def test_the_policy_stops_what_escaping_would_miss(page):
    """A script that is put into the page does not run, and no request leaves it."""
    ran = page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        return window.ran === true;
    }""")
    assert ran is False
    with pytest.raises(sync_api.Error, match=r"Failed to fetch|violates"):
        page.evaluate("() => fetch('https://example.org/')")


def column(page, table, number):
    """Read a column of a table as it is shown."""
    return page.locator(f"[data-table={table}] tbody tr td:nth-child({number})").all_inner_texts()


def test_sorting(page):
    """A click on a heading sorts numbers as numbers, a second one the other way; ARIA says so."""
    head = page.locator("[data-table=bench-1] thead th", has_text="a step")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    times = column(page, "bench-1", 6)
    assert times[0] == "10 us" and times[-1] == "30 ms"
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "bench-1", 6) == times[::-1]


def test_filtering(page):
    """Words and a choice of values narrow a table; the count says so."""
    table = page.locator("[data-table=verify-1-rows]")
    assert "31 of 31 rows" in table.locator("[role=status]").inner_text()
    table.get_by_role("searchbox").fill("case-1 float64")
    assert table.locator("tbody tr").count() == 3
    assert "3 of 31 rows" in table.locator("[role=status]").inner_text()
    table.get_by_role("searchbox").fill("")
    table.get_by_label("verdict").select_option(label="FAILED")
    assert "bad" in table.locator("tbody tr").inner_text()


def test_curves_are_chosen_by_clicking(page):
    """A run of the table is drawn, or not; the metric can be another one."""
    status = page.locator("#curves-status")
    assert status.inner_text() == "3 of 3 runs drawn"
    page.locator("[data-table=runs] tbody input").first.uncheck()
    assert status.inner_text() == "2 of 3 runs drawn"
    assert page.locator("#curves .scatterlayer .trace").count() == 2
    page.get_by_label("metric").select_option("accuracy")
    assert "accuracy" in page.locator("#curves .ytitle").text_content()
    page.locator("#curves-none").click()
    assert status.inner_text() == "0 of 3 runs drawn"


def test_the_grid_by_keyboard(opened, page):
    """The failed square is chosen first; arrows move; its command can be copied."""
    detail = page.locator("#verify-1-detail")
    assert "bad" in detail.inner_text() and "3 of 1,000" in detail.inner_text()
    page.locator(".grid button[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    assert "case-" in detail.inner_text()
    assert page.evaluate("document.activeElement.ariaPressed") == "true"
    assert page.locator(".grid button[tabindex='0']").count() == 1
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    detail.get_by_role("button").click()
    sync_api.expect(detail.get_by_role("button")).to_have_text("copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == detail.locator("code").inner_text() and copied.startswith("adadelta verify")


def test_groups_of_a_bench(page):
    """The charts are those of the group that is chosen."""
    assert page.locator("#bench-1-group-2").is_hidden()
    page.get_by_label("charts of").select_option(label="float32, 2 threads, warm")
    assert page.locator("#bench-1-group-1").is_hidden()
    page.locator("#bench-1-group-2 .chart").first.scroll_into_view_if_needed()
    page.locator("#bench-1-group-2 svg.main-svg").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_accessible(chromium, path, scheme, width):
    """axe-core finds nothing serious, on a phone and a desktop, light and dark."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    opened = Opened(chromium, path, color_scheme=scheme, viewport={"width": width, "height": 800})
    opened.draw_all()
    found = axe.run(opened.page).response["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"][:3]])
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]
    assert serious == []
    opened.context.close()


def test_nothing_is_wider_than_a_phone(chromium, path):
    """Tables scroll inside their place, not the page."""
    opened = Opened(chromium, path, viewport={"width": 390, "height": 844})
    opened.draw_all()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    opened.context.close()


def test_a_phone_shows_the_verdict_of_a_row(chromium, path):
    """It stays at the right edge; the columns before it scroll under it."""
    opened = Opened(chromium, path, viewport={"width": 390, "height": 844})
    tables = opened.page.locator(".table table:has(td.verdict)")
    assert tables.count() > 1
    for table in tables.all():
        box = table.locator("td.verdict").first.bounding_box()
        assert box["x"] + box["width"] <= 390
    opened.context.close()


def test_printed(opened, page):
    """On paper it is light, without controls, and the charts are there."""
    opened.draw_all()
    page.emulate_media(media="print")
    assert page.locator(".tools").first.is_hidden()
    assert len(page.pdf()) > 50_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """500 runs, 3000 rows of verify, 200 rows of bench."""
    folder = tmp_path_factory.mktemp("large")
    for k in range(500):
        make_run(folder / "runs" / f"{k:03}", f"run-{k}", rows=201, rate=1 + k / 100)
    rows = [verify_row(k, note=f"note {k} " * 5) for k in range(2999)] + [verify_row(5, **FAILED)]
    make_verification(folder / "verify", rows)
    make_bench(folder / "bench", [bench_row(k) for k in range(200)], samples=100)
    return write_page(folder / "report.html", read_folders([folder]))


def test_a_large_report_is_small(large):
    """Under 5 MB."""
    assert large.stat().st_size < BIG_MB * 1e6


def test_a_large_report_opens_quickly(chromium, large):
    """Under two seconds until the curves are drawn: the best of three, on a busy machine."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        opened = Opened(chromium, large)
        opened.page.locator("#curves svg.main-svg").first.wait_for()
        seconds.append(time.perf_counter() - began)
        assert opened.complaints == []
        opened.context.close()
    assert min(seconds) < BIG_S, json.dumps(seconds)


def test_all_curves_of_a_large_report(chromium, large):
    """500 curves are drawn."""
    opened = Opened(chromium, large)
    opened.page.locator("#curves-all").click()
    assert opened.page.locator("#curves-status").inner_text() == "500 of 500 runs drawn"
    assert opened.page.locator("#curves .scatterlayer .trace").count() == 500
    assert opened.complaints == []
    opened.context.close()
