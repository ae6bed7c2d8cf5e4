"""Damaged copies of small files, through every reader of files of one's own making: refused, or read as they are."""

import pytest

from benchmarks import bench_readers, small_files
from benchmarks.small_files import SAMPLES
from remap import io, surveys
from remap.spectra import SpectrumError

# Numbers that nothing else in a file repeats: a change in one of them cannot be seen.
UNSEEN = {
    "CRVAL1",
    "CD1_1",
    "CDELT1",
    "CRPIX1",
    "BITPIX",
    "NAXIS1",
    "NAXIS2",
    "WAT2_001",
    "WAT2_002",
    "WAT2_003",
}


KINDS = ("image", "image_hdus", "image_packed", "iraf", "text", "bundle")


@pytest.mark.parametrize("name", KINDS)
def test_a_mutant_is_refused_or_read_as_it_is(tmp_path, name):
    path = tmp_path / SAMPLES[name].file
    source = SAMPLES[name].write(path)
    content, before = path.read_bytes(), io.read_segments(path, source=source)
    outcomes = []
    for mutant in bench_readers.mutants(content, 100, seed=1):
        got = bench_readers.outcome(path, mutant, source, before)
        card = content[mutant.start // 80 * 80 :][:8].decode("latin-1").strip()
        # A byte of packed data moves all that follows in its tile.
        spreads = name == "image_packed" and mutant.in_data
        assert got != "changed" or card in UNSEEN or spreads, (mutant.what, card)
        outcomes.append(got)
    assert "refused" in outcomes


def test_the_judge_sees_what_has_changed(tmp_path):
    path = tmp_path / "x.fits"
    source = small_files.image(path)
    before = io.read_segments(path, source=source)
    content = path.read_bytes()
    shifted = content.replace(b"5000.0", b"5001.0")
    mutant = bench_readers.Mutant(shifted, "card", content.index(b"CRVAL1"), 0, False)
    assert bench_readers.outcome(path, mutant, source, before) == "changed"
    assert (
        bench_readers.outcome(path, bench_readers.Mutant(content, "", 0, 0, False), source, before) == "equal"
    )
    at = 2880 + 40
    assert content[at - 40 :][:4] == small_files.FLUX[:1].astype(">f4").tobytes()
    mutant = bench_readers.Mutant(
        content[:at] + b"\x3f\x01" + content[at + 2 :], "flip data", at, at + 2, True
    )
    expected = "touched" if content[at : at + 2] != b"\x3f\x01" else "equal"
    assert bench_readers.outcome(path, mutant, source, before) == expected


def test_identification_of_damaged_files_ends_in_matches_or_one_kind_of_error(tmp_path):
    path = tmp_path / "x.fits"
    small_files.image(path)
    for mutant in bench_readers.mutants(path.read_bytes(), 100, seed=2):
        path.write_bytes(mutant.content)
        try:
            found = surveys.identify(path)
        except SpectrumError:
            continue
        assert all(match.score > 0 for match in found)
