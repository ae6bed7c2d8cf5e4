"""The report in a headless Chromium: sorting, filters, cards, keys, and a silent console."""

import time

import numpy as np
import pytest
from helpers import pages
from helpers.browser import chromium

from remap.report.html import write_report

pytest.importorskip("jinja2", reason="needs Jinja2 (extra `report`)")
STARS = 300


@pytest.fixture(scope="module")
def content():
    return pages.content(STARS, cards=3)


@pytest.fixture(scope="module")
def browser(content, tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("page") / "report.html", content)
    with chromium() as driver:
        driver.address = path.as_uri()
        yield driver


@pytest.fixture
def page(browser):
    """The page, freshly opened; at the end its console must be empty."""
    browser.get("about:blank")
    browser.get(browser.address)
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def column(page, name: str) -> list[str]:
    """The texts of a column of the table's rows that are shown."""
    return page.execute_script(
        "const t = document.getElementById('table'),"
        " i = [...t.tHead.rows[0].cells].findIndex(c => c.textContent.startsWith(arguments[0]));"
        "return [...t.tBodies[0].rows].map(r => r.cells[i].firstChild ? r.cells[i].firstChild.textContent : '')",
        name,
    )


def header(page, name: str):
    return next(
        b for b in page.find_elements("css selector", "#table thead button") if b.text.startswith(name)
    )


def status(page) -> str:
    return page.find_element("id", "status").text


def wait(page, start: str) -> None:
    """Until the line above the table starts so: a search waits for the end of typing."""
    end = time.monotonic() + 20
    while not status(page).startswith(start):
        assert time.monotonic() < end, status(page)
        time.sleep(0.05)


def wait_open(card) -> None:
    """Until a card is open: the browser tells the page of a new address some time after the click."""
    end = time.monotonic() + 20
    while card.get_attribute("open") is None:
        assert time.monotonic() < end, "the card is still closed"
        time.sleep(0.02)


def test_headers_sort_up_and_down_and_say_so(page, content):
    teff = np.sort(np.asarray(content.table["teff"])[:-1])
    header(page, "Teff").click()
    assert column(page, "Teff")[:50] == [f"{v:.0f}" for v in teff[:50]]
    cell = page.find_element("css selector", "th[aria-sort=ascending]")
    assert cell.text.startswith("Teff")
    header(page, "Teff").click()
    assert column(page, "Teff")[:50] == [f"{v:.0f}" for v in teff[::-1][:50]]
    assert page.find_element("css selector", "th[aria-sort=descending]").text.startswith("Teff")
    header(page, "star").click()
    found = column(page, "star")
    assert found == [f"S{i}" for i in range(50)]  # as numbers, not as letters
    page.find_element("id", "clear").click()
    assert column(page, "file")[:2] == ["star_00000.fits", "star_00001.fits"]


def test_flags_stand_beside_the_labels(page):
    titles = [cell.text for cell in page.find_elements("css selector", "#table thead th")]
    assert titles[titles.index("flags") - 1].startswith("[Fe/H]")
    assert column(page, "flags")


def test_the_star_without_values_comes_last_either_way(page):
    page.execute_script("document.getElementById('size').value='500';")
    page.execute_script("document.getElementById('size').dispatchEvent(new Event('change'))")
    for _ in range(2):
        header(page, "Teff").click()
        values = column(page, "Teff")
        assert len(values) == STARS
        assert values[-1] == ""
        assert "" not in values[:-1]


def test_search_flags_and_limits_choose(page, content):
    page.find_element("id", "find").send_keys("STAR_0001")
    wait(page, "10 of 300 stars")
    page.find_element("id", "clear").click()
    page.find_element("id", "find").send_keys("expected a spectrum")
    wait(page, "1 of 300 stars")
    assert column(page, "file") == [f"star_{STARS - 1:05d}.fits"]
    page.find_element("id", "clear").click()
    far = int(np.count_nonzero(np.asarray(content.table["flags"]) & 64))
    page.find_element("css selector", "#flag option[value='64']").click()
    wait(page, f"{far} of 300 stars")
    assert {tags.strip() for tags in column(page, "flags")} == {"FAR"}
    page.find_element("css selector", "#flag option[value='']").click()
    page.find_element("id", "from").send_keys("5000")
    page.find_element("id", "to").send_keys("5500")
    teff = np.round(np.asarray(content.table["teff"]))
    wait(page, f"{np.count_nonzero((teff >= 5000) & (teff <= 5500))} of 300 stars")
    page.find_element("id", "clear").click()
    page.find_element("css selector", "#only option[value='1']").click()
    wait(page, "3 of 300 stars")


def test_pages_turn(page):
    assert status(page) == "300 of 300 stars, rows 1 to 50 (page 1 of 6)"
    assert not page.find_element("id", "back").is_enabled()
    page.find_element("id", "forth").click()
    assert status(page) == "300 of 300 stars, rows 51 to 100 (page 2 of 6)"
    assert column(page, "file")[0] == "star_00050.fits"
    page.find_element("id", "back").click()
    assert column(page, "file")[0] == "star_00000.fits"


def test_a_card_opens_from_the_table_and_has_the_focus(page):
    card = page.find_element("id", "card-1")
    assert card.get_attribute("open") is None
    page.find_element("css selector", "#table a[href='#card-1']").click()
    wait_open(card)
    assert page.switch_to.active_element.text.startswith("star_00001.fits")
    assert card.find_element("css selector", "figure svg").size["width"] > 200
    assert "median of arm A" in card.text
    # Closed by hand, the same link opens it again.
    page.execute_script("document.getElementById('card-1').open = false")
    page.find_element("css selector", "#table a[href='#card-1']").click()
    wait_open(card)


def test_an_address_with_a_card_opens_it(page):
    page.get("about:blank")
    page.get(page.address + "#card-2")
    wait_open(page.find_element("id", "card-2"))
    page.get(page.address + "#card-99")
    assert status(page).startswith("300 of 300")


def test_all_can_be_done_with_keys(page):
    from selenium.webdriver.common.keys import Keys

    body = page.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "Skip to the table of stars"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "stars"
    body.send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "find"
    header(page, "S/N").send_keys(Keys.ENTER)
    assert page.find_element("css selector", "th[aria-sort=ascending]").text.startswith("S/N")
    header(page, "S/N").send_keys(Keys.SPACE)
    assert page.find_element("css selector", "th[aria-sort=descending]").text.startswith("S/N")


def test_dark_and_light(page):
    def colour() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    first = colour()
    page.find_element("id", "theme").click()
    second = colour()
    assert first != second
    page.find_element("id", "theme").click()
    assert colour() == first


def test_markup_in_names_stays_text(browser, tmp_path):
    evil = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"
    content = pages.replace(pages.content(8, cards=2, evil=evil), title="not caught")
    browser.get(write_report(tmp_path / "evil.html", content).as_uri())
    browser.get_log("browser")
    header(browser, "file").click()
    assert column(browser, "file")[0] == evil
    assert browser.find_elements("css selector", "#table img, #table script, main img") == []
    assert browser.title == "not caught"
    assert [entry["message"] for entry in browser.get_log("browser")] == []
