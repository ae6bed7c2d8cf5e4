"""How large is the report of many stars, how long does it take to write, to open and to sort?

    python -m benchmarks.bench_report --output=workdirs/bench_report [--stars=10000] [--cards=100]

The stars are made up; their spectra, of two arms with 1000 pixels each, are noise, the worst case.
Times of the browser, a headless Chromium, are left out where selenium, chromium and chromedriver are not installed.
Prints a table and writes it as `table.md`.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from astropy.table import Column, Table

from launch import cli
from remap.predict.catalogue import describe
from remap.report.html import ArmCard, ReportContent, StarCard, render, write_report

OUTPUT = flags.DEFINE_string("output", "workdirs/bench_report", "Folder for the report and the table.")
STARS = flags.DEFINE_integer("stars", 10_000, "Stars of the catalogue.")
CARDS = flags.DEFINE_integer("cards", 100, "Stars with a card.")
PIXELS = flags.DEFINE_integer("pixels", 1000, "Of each of two arms.")
LABELS = {
    "teff": ("K", 4000.0, 7000.0, 80.0),
    "logg": ("dex", 0.5, 5.0, 0.15),
    "feh": ("dex", -2.0, 0.5, 0.1),
}
BINS = 60
# Runs in the page: from the click on a header until its rows are laid out.
SORT = """
const buttons = [...document.querySelectorAll('#table thead button')];
const button = buttons.find(b => b.textContent.startsWith(arguments[0]));
const start = performance.now();
button.click();
document.getElementById('table').getBoundingClientRect();
return performance.now() - start;
"""
SEARCH = """
const start = performance.now();
document.getElementById('flag').value = '64';
document.getElementById('flag').dispatchEvent(new Event('change'));
document.getElementById('table').getBoundingClientRect();
return performance.now() - start;
"""
OPENED = "return performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    out = Path(OUTPUT.value)
    content = _content(STARS.value, CARDS.value, PIXELS.value)
    few = dataclasses.replace(content, cards=content.cards[: len(content.cards) // 2])
    rows: list[tuple[str, str]] = []
    seconds, path = _timed(lambda: write_report(out / "report.html", content, overwrite=True))
    less, text = _timed(lambda: render(few))
    size, cards = path.stat().st_size, max(len(content.cards) - len(few.cards), 1)
    rows += [
        (f"size, {STARS.value} stars, {CARDS.value} cards", f"{size / 1e6:.2f} MB"),
        ("size of a card", f"{(size - len(text.encode())) / cards / 1e3:.1f} kB"),
        ("processor time to write", f"{seconds:.2f} s"),
        ("processor time of a card", f"{1e3 * (seconds - less) / cards:.0f} ms"),
    ]
    with _browser() as browser:
        if browser is None:
            cli.logger.warning("no times of a browser: needs selenium, chromium and chromedriver")
        else:
            rows += _in_browser(browser, path)
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _in_browser(browser: Any, path: Path) -> list[tuple[str, str]]:
    opened = []
    for _ in range(3):
        browser.get("about:blank")
        browser.get(path.absolute().as_uri())
        opened.append(browser.execute_script(OPENED))
    sorts = {name: [browser.execute_script(SORT, name) for _ in range(4)] for name in ("Teff", "file")}
    chosen = [browser.execute_script(SEARCH) for _ in range(3)]
    return [
        ("time to open, until the page has loaded", f"{np.median(opened):.0f} ms"),
        ("time to sort by a number", f"{np.median(sorts['Teff']):.0f} ms"),
        ("time to sort by a name", f"{np.median(sorts['file']):.0f} ms"),
        ("time to choose by a flag", f"{np.median(chosen):.0f} ms"),
    ]


@contextlib.contextmanager
def _browser() -> Iterator[Any]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        program = None
    if program is None or driver is None:
        yield None
        return
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1280,900",
    ):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def _content(stars: int, cards: int, pixels: int) -> ReportContent:
    rng = np.random.default_rng(0)
    table = Table({"file": [f"night_{i % 37:02d}/spectrum_{i:06d}.fits" for i in rng.permutation(stars)]})
    for name, (unit, low, high, width) in LABELS.items():
        value = rng.uniform(low, high, stars)
        for suffix, values in (("", value), ("_p16", value - width), ("_p84", value + width)):
            table[name + suffix] = Column(values, unit=unit)
    table["flags"] = np.where(rng.random(stars) < 0.2, 1 << rng.integers(0, 11, stars), 0).astype(np.int32)
    table["snr"] = rng.uniform(10, 200, stars)
    table["rv"] = Column(rng.normal(0, 30, stars), unit="km/s")
    edges = {k: np.linspace(low, high, BINS + 1) for k, (_, low, high, _) in LABELS.items()}
    return ReportContent(
        title=f"{stars} stars that are made up",
        table=table,
        labels=list(LABELS),
        edges=edges,
        flags=describe(),
        cards=[_card(row, pixels, rng) for row in np.linspace(0, stars - 1, cards).astype(int).tolist()],
        medium="air",
    )


def _card(row: int, pixels: int, rng: np.random.Generator) -> StarCard:
    arms = []
    for name, start in (("A", 4860.0), ("B", 5290.0)):
        normalized = 1 - 0.4 * rng.random(pixels) ** 4
        arms.append(
            ArmCard(
                name=name,
                wave=start + 430.0 * np.arange(pixels) / pixels,
                flux=normalized,
                continuum=np.ones(pixels),
                normalized=normalized,
                library=1 - 0.4 * rng.random(pixels) ** 4,
                saliency={label: rng.normal(0, 1, pixels) for label in LABELS},
            )
        )
    pmf = np.exp(-0.5 * ((np.arange(BINS) - BINS / 2) / 3) ** 2)
    pmfs = {label: dict.fromkeys(("", "A", "B"), pmf / pmf.sum()) for label in LABELS}
    return StarCard(row=row, arms=arms, pmfs=pmfs)


if __name__ == "__main__":
    cli.run(main, required=())
