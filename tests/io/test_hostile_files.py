"""Files made to crash a reader, to keep it busy or to fill the memory; and what checksums decide."""

import contextlib
import gzip
import io as streams
import logging
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from astropy.io import fits

from benchmarks import fuzzing, small_files
from benchmarks.small_files import SAMPLES, N
from remap import io, surveys
from remap.config import ConfigError
from remap.io import fits_structure
from remap.io.content import gunzip
from remap.io.fits_structure import START, check_fits
from remap.io.limits import limited
from remap.spectra import SpectrumError

MUTANTS = 500  # of every reader; bench_readers --small --hostile has thousands


def set_card(path, key, value, hdu=0):
    """Writes a card as it is, in place of one of this key or before END."""
    content = path.read_bytes()
    start = [0, *(i for i in range(0, len(content), 2880) if content[i : i + 8] == b"XTENSION")][hdu]
    end = next(at for at in range(start, len(content), 80) if content[at : at + 80].rstrip() == b"END")
    at = next((at for at in range(start, end, 80) if content[at : at + 8].rstrip() == key.encode()), None)
    card = f"{key:8}= {value:>20}".ljust(80).encode()
    if at is None:
        assert end % 2880 < 2800  # END has room to move
        content = content[:end] + card + content[end:][:80] + content[end + 160 :]
    else:
        content = content[:at] + card + content[at + 80 :]
    path.write_bytes(content)


def write(tmp_path, name):
    path = tmp_path / SAMPLES[name].file
    return path, SAMPLES[name].write(path)


def refused(name, path, source, seconds=2.0):
    start = time.process_time()
    with pytest.raises(SpectrumError, match=path.name) as error:
        SAMPLES[name].read(path, source)
    assert time.process_time() - start < seconds
    return str(error.value)


def test_hostile_copies_of_every_reader():
    """In a process of its own, which ends after ten seconds for a file, and has a gigabyte to spare."""
    found = fuzzing.fuzz(SAMPLES, MUTANTS)
    assert set(found) == set(SAMPLES)
    for name, one in found.items():
        assert not one.faults, (name, one.faults)
        assert one.refused + one.read == MUTANTS
        assert min(one.refused, one.read) > 20, name
        assert one.slowest < fuzzing.SECONDS
        assert one.grown < fuzzing.BYTES


def _hang(path, source):
    while path.read_bytes():
        pass


def _eat(path, source):
    return np.ones(2**28)


def _crash(path, source):
    raise SystemExit(7)


def _fail(path, source):
    raise AttributeError("x")


@pytest.mark.parametrize(
    ("read", "told"), [(_eat, "MemoryError"), (_fail, "AttributeError: x"), (_crash, "status 7")]
)
def test_the_fuzzer_sees_faults(read, told):
    sample = small_files.Sample("x.txt", small_files.text, read, spectra=False)
    found = fuzzing.fuzz({"x": sample}, 2)["x"]
    assert sorted(found.faults) == [0, 1]
    assert all(told in fault for fault in found.faults.values())


def test_the_fuzzer_ends_a_reader_that_hangs():
    sample = small_files.Sample("x.txt", small_files.text, _hang)
    found = fuzzing.fuzz({"x": sample}, 1, limit=1)["x"]
    assert found.faults == {0: "more than 1 s"}


@pytest.mark.parametrize(
    ("name", "hdu", "key", "value"),
    [
        ("image", 0, "NAXIS", "99999999999999999999"),
        ("image", 0, "NAXIS", "10000000"),
        ("image", 0, "NAXIS1", "-64"),
        ("image", 0, "CDELT1", "0,5"),
        ("image", 0, "CRVAL1", "0,5"),
        ("table", 1, "TFIELDS", "1000000000"),
        ("table", 1, "NAXIS2", "-64"),
        ("table", 1, "TFORM1", "0,5"),
        ("labels_fits", 1, "NAXIS2", "-64"),
        ("labels_fits", 1, "TFIELDS", "1000000000"),
        ("labels_fits", 1, "TTYPE1", "0,5"),
        ("phoenix", 0, "PHXTEFF", "1E400"),
        ("labels_header", 0, "PHXTEFF", "1E400"),
        ("labels_header", 0, "PHXTEFF", "0,5"),
    ],
)
def test_cards_that_kept_a_reader_busy_or_came_through(tmp_path, name, hdu, key, value):
    path, source = write(tmp_path, name)
    set_card(path, key, value, hdu)
    refused(name, path, source)


@pytest.mark.parametrize("spelt", ["naxis1  = ", "NAXIS1= ", " NAXIS1 = ", "HIERARCH NAXIS1 = "])
def test_a_size_in_another_spelling_is_no_way_round(tmp_path, spelt):
    """Astropy finds these too, and takes the first."""
    path, source = write(tmp_path, "image")
    content = path.read_bytes()
    at = content.index(b"NAXIS1")
    card = f"{spelt}100000000000".ljust(80).encode()
    path.write_bytes(content[:at] + card + content[at : 2880 - 80] + content[2880:])
    assert "NAXIS1" in refused("image", path, source)


def test_an_axis_without_pixels_beside_one_of_any_length(tmp_path):
    path, source = write(tmp_path, "table")
    for key, value in (("NAXIS1", "0"), ("NAXIS2", "100000000000000000"), ("TFIELDS", "0")):
        set_card(path, key, value, hdu=1)
    content = path.read_bytes()
    table, more = (i for i in range(0, len(content), 2880) if content[i : i + 8] == b"XTENSION")
    data = content.index(b" END".ljust(81), table)
    data += -data % 2880
    path.write_bytes(content[:data] + content[more:])
    assert "NAXIS2" in refused("table", path, source)


def test_very_many_hdus(tmp_path):
    path, source = write(tmp_path, "image")
    empty = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU()])
    stream = streams.BytesIO()
    empty.writeto(stream)
    path.write_bytes(path.read_bytes() + stream.getvalue()[2880:] * (fits_structure.MOST_HDUS + 1))
    assert "HDUs" in refused("image", path, source)


@pytest.mark.parametrize("number", [798, 1310, 3542])
def test_packed_images_ask_for_no_memory_that_they_do_not_need(tmp_path, number):
    """Hostile copies with a BYTEPIX of -32 or of millions, for which the decoder took gigabytes."""
    path, source = write(tmp_path, "image_packed")
    path.write_bytes(fuzzing.mutant("image_packed", SAMPLES["image_packed"], number))
    assert "compressed image of BYTEPIX" in refused("image_packed", path, source)


@pytest.mark.parametrize("column", [1, 2, 3])
def test_units_of_label_tables_are_not_worked_out(tmp_path, column):
    """Powers of many digits, also of columns that nobody needs, kept astropy busy for minutes."""
    path, source = write(tmp_path, "labels_fits")
    set_card(path, f"TUNIT{column}", "'10**999999999 m'", hdu=1)
    start = time.process_time()
    with (
        contextlib.nullcontext() if column == 1 else pytest.raises(SpectrumError, match=r"10\*\*999999999 m")
    ):
        SAMPLES["labels_fits"].read(path, source)
    assert time.process_time() - start < 2


def test_units_of_tables_of_text_are_not_worked_out(tmp_path):
    path, source = write(tmp_path, "table_text")
    set_card(path, "TUNIT2", "'10**999999999 m'", hdu=1)
    assert "expected a unit of 'FLUX', found '10**999999999 m'" in refused("table_text", path, source)


def bomb(content, megabytes):
    """A gzip archive of a content and so many megabytes of zeros."""
    return gzip.compress(content) + gzip.compress(bytes(2**20)) * megabytes


@pytest.mark.parametrize("name", ["image", "text", "labels_csv", "labels_fits", "identify"])
def test_gzip_bombs(tmp_path, name):
    path, source = write(tmp_path, name)
    path.write_bytes(bomb(path.read_bytes(), 5000))
    assert path.stat().st_size < 6e6
    assert "largest" in refused(name, path, source)


def test_an_archive_takes_little_more_than_what_it_holds(tmp_path):
    content = np.random.default_rng(0).integers(0, 4, 2**24, np.uint8).tobytes()
    packed = gzip.compress(content, 1)
    tracemalloc.start()
    try:
        assert gunzip(packed, tmp_path / "x.fits.gz", most=2**24) == content
        assert tracemalloc.get_traced_memory()[1] < 1.3 * len(content)
    finally:
        tracemalloc.stop()


def test_a_bomb_is_read_where_the_source_allows_for_it(tmp_path):
    path, source = write(tmp_path, "text")
    content = path.read_bytes()
    path.write_bytes(gzip.compress(content + b" " * 2**24 + b"\n"))
    refused("text", path, source)
    assert io.read(path, source=source | {"largest": 2**25}).wave.size == N
    assert "1e+03" in refused("text", path, source | {"largest": 1000})


def test_members_of_an_archive_without_end(tmp_path):
    """What is left of an archive was copied with every member: an hour for a few megabytes of empty ones."""
    path, source = write(tmp_path, "text")
    content = path.read_bytes()
    path.write_bytes(gzip.compress(b"") * 50_000 + gzip.compress(content) + bytes(2880))
    start = time.process_time()
    assert io.read(path, source=source).wave.size == N
    assert time.process_time() - start < 5


def test_a_bomb_of_arrays(tmp_path):
    path, source = write(tmp_path, "bundle")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("more.npy", bytes(2**27 + 1))
    assert path.stat().st_size < 1e6
    assert "more.npy" in refused("bundle", path, source)
    assert len(io.read(path, source=source | {"largest": 2**28})) == 2


@pytest.mark.parametrize("shape", ["(4611686018427387904, 4)", "(1000000000,)", "(2, 199)"])
def test_an_array_is_as_large_as_it_says(tmp_path, shape):
    path, source = write(tmp_path, "bundle")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    old = members["flux.npy"]
    header = old[10 : 10 + int.from_bytes(old[8:10], "little")]
    new = header.replace(b"(2, 200)", shape.encode()).rstrip().ljust(len(header) - 1) + b"\n"
    assert len(new) == len(header)
    assert new != header
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"flux.npy": old[:10] + new + old[10 + len(header) :]}).items():
            archive.writestr(name, data)
    assert "flux.npy" in refused("bundle", path, source)


def test_a_packed_image_of_nothing(tmp_path):
    path = tmp_path / "packed.fits.fz"
    image = fits.CompImageHDU(np.zeros((1, 2**25), np.uint8), tile_shape=(1, 2**25))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)
    assert path.stat().st_size < 5e5
    assert "bytes" in refused("image_packed", path, small_files.BASE | {"format": "image", "axis": "linear"})


def test_yaml_that_grows(tmp_path):
    """Ten aliases of ten aliases of ten: a name of ten thousand million letters, once it is written out."""
    path, source = write(tmp_path, "labels_ecsv")
    lines = path.read_text().splitlines(keepends=True)
    at = lines.index("# datatype:\n")
    names = ["# a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"]
    names += [f"# a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)]
    lines[at:at] = names
    path.write_text("".join(lines))
    assert len(io.read_labels(path, source=source)) == 20  # nobody asks for it
    first = lines.index("# - {name: FILE, datatype: string}\n")
    lines[first] = "# - {name: *a9, datatype: string}\n"
    path.write_text("".join(lines))
    assert "name" in refused("labels_ecsv", path, source)


# Checksums.


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def summed(tmp_path):
    return write(tmp_path, "checksums")


def test_a_bit_of_the_data_is_found_by_datasum(summed):
    path, source = summed
    assert io.read(path, source=source).wave.size == N
    flip(path, 2880 + 5)
    assert "DATASUM" in refused("checksums", path, source)
    assert "DATASUM" in refused("checksums", path, source | {"checksums": "all"})
    assert io.read(path, source=source | {"checksums": "none"}).wave.size == N


def test_an_edited_header_is_told_and_read(summed, caplog):
    path, source = summed
    set_card(path, "OBJECT", "'b star  '")
    with caplog.at_level(logging.WARNING):
        found = io.read(path, source=source)
    assert found.fact("star_id")[0] == "b star"
    assert "summed.fits" in caplog.text
    assert "CHECKSUM" in caplog.text
    assert "CHECKSUM" in refused("checksums", path, source | {"checksums": "all"})
    caplog.clear()
    io.read(path, source=source | {"checksums": "none"})
    assert not caplog.text


def test_sound_sums_are_not_told(summed, caplog):
    path, source = summed
    io.read(path, source=source | {"checksums": "all"})
    assert not caplog.text


@pytest.mark.parametrize("written", ["'         0'", "''", "'none    '"])
def test_sums_that_nobody_computed_count_for_nothing(summed, written, caplog):
    path, source = summed
    set_card(path, "DATASUM", written)
    set_card(path, "CHECKSUM", "'0000000000000000'")
    assert io.read(path, source=source).wave.size == N
    assert not caplog.text


def test_sums_of_every_length_are_astropys():
    rng = np.random.default_rng(0)
    for size in (0, 1, 3, 4, 2880, 12345):
        content = b"x" * 7 + rng.bytes(size)
        padded = np.frombuffer(content[7:] + bytes(-size % 2880), np.uint8)
        assert fits_structure._sum(content, 7, 7 + size) == fits.ImageHDU()._compute_checksum(padded)


def test_real_files_have_sound_sums(data_root, caplog):
    """DESI, CRIRES and UVES write them; HARPS writes a DATASUM of zero, which means nothing."""
    seen = 0
    for path in sorted((data_root / "surveys").rglob("*.fits")):
        content = path.read_bytes()
        if (b"DATASUM =" in content or b"CHECKSUM=" in content) and content.startswith(START):
            with limited({"checksums": "all"}, "image"):
                check_fits(content, path)
            seen += 1
    assert seen >= 4
    assert not caplog.text


@pytest.mark.parametrize(
    "wrong",
    [{"largest": 0}, {"largest": "1 GB"}, {"largest": True}, {"checksums": "some"}, {"checksums": ("data",)}],
)
def test_limits_that_are_none(tmp_path, wrong):
    path, source = write(tmp_path, "image")
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        io.read(path, source=source | wrong)
    path, source = write(tmp_path, "labels_csv")
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        io.read_labels(path, source=source | wrong)


def test_limits_of_a_survey_with_several_layouts(tmp_path):
    path, source = write(tmp_path, "any")
    assert io.read(path, source=source).wave.size == N
    survey = surveys.Survey(name="x", about="", source=source, patterns=("*",), frame="rest", reference="")
    small = survey.with_source({"largest": 1000})
    assert "largest" in refused("any", path, dict(small.source))
    assert "largest" in refused("any", path, source | {"largest": 1000})
