"""The report as text: what it says, that nothing of it can be markup from a file, and that it loads nothing."""

import builtins
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from astropy.table import Table
from helpers import pages

from remap.config import ConfigError
from remap.report.html import KnownLabels, check_report, render, summary, svg, write_report
from remap.report.html.figures import by_severity, kinds_by_flag
from remap.report.html.page import table_data
from remap.writing import StorageError

pytest.importorskip("jinja2", reason="needs Jinja2 (extra `report`)")
LOADED = ("src", "href", "xlink:href", "action", "data", "poster", "srcset", "formaction", "background")
VOID = ("meta", "link", "input", "br", "hr", "img")


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.ids, self.links, self.open, self.text, self.data = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []  # every element is closed, in order

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named[name] for name in LOADED if name in named]
        if tag not in VOID:
            self.open.append((tag, named.get("id")))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == ("script", "data"):
            self.data += data
        elif not self.open or self.open[-1][0] not in ("script", "style"):
            self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def content():
    return pages.content(60, cards=6)


@pytest.fixture(scope="module")
def page(content):
    return Page(render(content))


def test_every_part_is_there_and_can_be_reached(page):
    for part in ("summary", "kiel", "distributions", "flags", "known", "stars", "cards", "provenance"):
        assert page.ids.count(part) == 1
    assert len(page.ids) == len(set(page.ids))
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert set(inner) <= set(page.ids)
    assert {"summary", "stars"} <= set(inner)


def test_nothing_is_loaded_from_elsewhere(page):
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    style = render(pages.content(2)).split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style
    assert [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "base")] == []


def test_the_summary_counts(content):
    lines = " ".join(summary(content))
    assert "60 stars in the catalogue; 59 (98.3 %) with values." in lines
    assert "1 (1.67 %) could not be used" in lines
    clean = int(np.sum(content.table["flags"] == 0))
    assert f"{clean} ({100 * clean / 60:.3g} %) without any flag" in lines
    middle = np.nanmedian(content.table["teff"])
    assert f"Teff: median {middle:.0f} K" in lines


def test_flags_are_told_in_words_and_counted(page, content):
    text = page.words()
    for bit, meaning in content.flags.items():
        name, _, words = meaning.partition(": ")
        assert words in text
        count = int(np.count_nonzero(np.asarray(content.table["flags"]) & bit))
        share = f"{100 * count / 60:.1f} %"
        assert f"{name} {bit} {count} {share}" in text


def test_a_card_says_what_is_known_of_its_star(content):
    star = content.cards[1]
    text = render(content)
    card = Page(
        text[text.index(f'<details class="card" id="card-{star.row}">') :].split("</details>")[0]
        + "</details>"
    )
    row, words = content.table[star.row], card.words()
    assert row["file"] in words
    assert f"{row['teff']:.0f}" in words
    assert "median of arm A" in words
    for near in star.neighbours:
        assert near.name in words
    assert "the difference has an rms of 0.02" in words
    assert "Teff 5500 K" in words
    # An arm of 30 wavelengths: flux, continuum, normalised flux, library, three saliencies; lines by name.
    drawings = [a for tag, a in card.tags if tag == "svg"]
    assert sum("flux, normalised flux and saliency" in a["aria-label"] for a in drawings) == 2
    assert sum(a["aria-label"].startswith("probabilities of") for a in drawings) == 3
    assert sum("star and neighbours" in a["aria-label"] for a in drawings) == 1  # arm A alone has some
    assert "Mg b" in words
    assert all(a["role"] == "img" or a.get("aria-hidden") for tag, a in card.tags if tag == "svg")


def test_what_is_not_known_is_left_out():
    content = pages.content(5)
    table = content.table["file", "teff", "flags"]
    text = Page(render(pages.replace(content, table=table, known=None, cards=(), flags={}))).words()
    assert "Kiel" not in text
    assert "Known" not in text
    assert "cards" not in Page(render(pages.replace(content, cards=()))).ids
    data = table_data(pages.replace(content, table=table))
    assert [c["name"] for c in data["columns"]] == ["file", "teff"]
    assert data["low"] == {}


def test_an_empty_catalogue_and_one_without_a_value_are_reports():
    content = pages.content(3)
    empty = pages.replace(content, table=content.table[:0], cards=(), known=None)
    assert "The catalogue is empty." in Page(render(empty)).words()
    table = content.table.copy()
    for label in content.labels:
        for name in [n for n in table.colnames if n.startswith(label)]:
            table[name] = np.nan
    table["snr"] = np.nan
    words = Page(render(pages.replace(content, table=table, known=None))).words()
    assert "3 (100 %) could not be used" in words


EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "it's & “quoted” \u2028 Σ星.fits",
    "{{ 7 * 7 }} {% raw %}",
    "<!-- <script>",
    "not utf-8 \udcff",
)


@pytest.mark.parametrize("evil", EVIL)
def test_texts_of_files_are_never_markup(evil, tmp_path):
    plain = pages.content(4, cards=4, evil="harmless")
    content = pages.content(4, cards=4, evil=evil)
    path = write_report(tmp_path / "page.html", content)
    page, harmless = Page(path.read_text(encoding="utf-8")), Page(render(plain))
    # The same elements in the same order: the text has made none.
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    seen = evil.replace("\udcff", "?")
    where = page.words()
    # Title, name, star, message, flag, neighbour, library, note, provenance.
    assert where.count(" ".join(seen.split())) > 9
    data = json.loads(page.data)
    assert data["data"][0][0] == evil


def test_the_data_of_the_table_are_those_of_the_catalogue(page, content):
    data = json.loads(page.data)
    names = [c["name"] for c in data["columns"]]
    assert names[:5] == ["file", "star_id", "teff", "logg", "feh"]
    assert {"snr", "dwarf_probability", "message"} <= set(names)
    teff = [np.nan if v is None else v for v in data["data"][names.index("teff")]]
    np.testing.assert_allclose(teff, content.table["teff"], atol=0.5)
    assert data["flags"] == content.table["flags"].tolist()
    assert data["cards"] == [c.row for c in content.cards]
    assert data["names"]["64"] == "FAR"


def test_masked_columns_and_infinite_numbers_are_not_known():
    content = pages.content(4)
    table = Table(content.table, masked=True)
    table["snr"].mask[1] = True
    table["teff"][2] = np.inf
    data = table_data(pages.replace(content, table=table))
    names = [c["name"] for c in data["columns"]]
    assert data["data"][names.index("snr")][1] is None
    assert data["data"][names.index("teff")][2] is None
    assert (
        "Infinity"
        not in render(pages.replace(content, table=table, cards=(), known=None)).split("<script>")[0]
    )


def test_stars_are_drawn_once_as_their_most_severe_flag():
    meanings = {1: "LOW_SNR: a", 8: "EDGE: b", 64: "FAR: c", 2048: "NEW: of a later version"}
    assert by_severity(meanings) == [2048, 64, 8, 1]
    flags = np.array([0, 1, 9, 72, 64, 2049, 4096, 8])
    kinds = kinds_by_flag(flags, meanings, np.arange(8) != 7)
    assert {k.name: np.flatnonzero(k.members).tolist() for k in kinds} == {
        "no flag": [0],
        "NEW": [5],
        "FAR": [3, 4],
        "EDGE": [2],
        "LOW_SNR": [1],
        "other flags": [6],
    }
    assert len({k.shape for k in kinds}) == len(kinds)  # shapes tell them apart, too


def test_known_labels_have_numbers_of_their_groups(content):
    known = KnownLabels(
        known={"teff": np.array([5000.0, 5100.0, 5200.0, np.nan])},
        predicted={"teff": np.array([5010.0, 5130.0, 5180.0, 5000.0])},
        p16={"teff": np.full(4, 4900.0)},
        p84={"teff": np.full(4, 5300.0)},
        groups=["dwarfs", "dwarfs", "giants", "giants"],
        note="from a table",
    )
    words = Page(render(pages.replace(content, known=known))).words()
    assert "from a table" in words
    assert "Teff [K] dwarfs 2 20 " in words  # mean of 10 and 30
    assert "Teff [K] giants 1 −20 " in words


def test_a_curve_keeps_its_extremes_when_it_is_thinned():
    x, y = np.arange(5000.0), np.zeros(5000)
    y[[1234, 4321]] = -1.0, 2.0
    thin_x, thin_y = svg.thin(x, y, 400)
    assert thin_x.size <= 800
    assert np.all(np.diff(thin_x) > 0)
    assert {(1234.0, -1.0), (4321.0, 2.0)} <= set(zip(thin_x, thin_y, strict=True))
    _, mean = svg.average(x, y + x, 100)
    np.testing.assert_allclose(mean[50], (y + x)[2500:2550].mean())


def test_paths_are_exact_and_broken_where_nothing_is_known():
    rng = np.random.default_rng(0)
    x, y = np.arange(40.0), rng.normal(0, 50, 40).round()
    y[7], y[20:23] = np.nan, np.nan
    places, at = [], np.zeros(2)
    data = (
        svg.relative_path(x, y)
        .replace("-", " -")
        .replace("M", " M ")
        .replace("l", " l ")
        .replace("h", " h ")
        .split()
    )
    i, mode = 0, ""
    while i < len(data):
        if data[i] in "Mlh":
            mode, i = data[i], i + 1
            continue
        step = np.array([float(data[i]), 0.0 if mode == "h" else float(data[i + 1])])
        at = step if mode == "M" else at + step
        places.append(tuple(at))
        i += 1 if mode == "h" else 2
    good = np.isfinite(y)
    assert places == list(zip(x[good], y[good], strict=True))
    assert svg.relative_path(x, np.full(40, np.nan)) == ""


def test_writing_is_whole_or_not_at_all(content, tmp_path, monkeypatch):
    path = write_report(tmp_path / "new" / "page.html", content)
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(FileExistsError, match="exists already"):
        write_report(path, content)
    write_report(path, content, overwrite=True)
    with pytest.raises(ConfigError, match=r"must end in \.html, found '\.pdf'"):
        check_report(tmp_path / "page.pdf", overwrite=False)

    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "jinja2":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'deep-remap\[report\]'"):
        check_report(tmp_path / "other.html", overwrite=False)


def test_cards_are_small(content):
    """A card of two arms of 1000 pixels in noise, the worst case of what is common."""
    big = pages.content(2, cards=2, pixels=1000)
    size = (len(render(big)) - len(render(pages.replace(big, cards=big.cards[:1])))) / 1024
    assert size < 45, size


def test_a_report_is_written_whole_and_its_place_is_tried_first(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(StorageError, match=r"page\.html: is a folder"):
        check_report(tmp_path / "page.html", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="expected a folder"):
        check_report(tmp_path / "file" / "page.html", overwrite=False)
