"""A batch with hostile files among good ones: rows with messages in their places, and the others unchanged."""

import logging

import numpy as np
import pytest
from helpers import tiny

from benchmarks import mutation
from benchmarks.small_files import SAMPLES
from remap import make_spectra
from remap.config import ConfigError
from remap.predict import observing
from remap.predict.observing import read_and_observe
from remap.preprocess.description import make_preprocessing
from remap.preprocess.observe import observe
from remap.preprocess.observe_settings import ObserveSettings

MUTANTS = 60


@pytest.fixture(scope="module")
def preprocessing():
    config = tiny.get_config()
    config.arms.A.update({"start": 5010.0, "stop": 5050.0, "step": 1.0})
    config.arms.B.update({"start": 5050.0, "stop": 5090.0, "step": 1.0})
    return make_preprocessing(config)


@pytest.mark.parametrize("name", ["image", "table", "text"])
def test_hostile_files_are_rows_of_their_own(tmp_path, preprocessing, name, caplog):
    sample, rng = SAMPLES[name], np.random.default_rng(5)
    good = tmp_path / sample.file
    source = sample.write(good)
    files = []
    for i in range(MUTANTS):
        files.append(tmp_path / f"mutant{i}_{sample.file}")
        files[-1].write_bytes(mutation.mutant(good.read_bytes(), rng))
    files.insert(MUTANTS // 2, good)
    with caplog.at_level(logging.CRITICAL):
        found, (alone,) = (
            read_and_observe(some, preprocessing, source=source, root=None, settings=ObserveSettings())
            for some in (files, [good])
        )
    assert len(found) == len(files)
    bad = [file.name in one.messages[0] for one, file in zip(found, files, strict=True)]
    assert sum(bad) > MUTANTS // 3
    for arm, one in alone.arms.items():
        np.testing.assert_array_equal(found[MUTANTS // 2].arms[arm].flux, one.flux)


def test_a_spectrum_that_nobody_has_thought_of_is_a_row_and_a_wrong_setting_is_not(
    tmp_path, preprocessing, caplog, monkeypatch
):
    files = [tiny.write_table(tmp_path / name, *tiny.star(i)) for i, name in enumerate(("a.fits", "b.fits"))]
    own, fault = observing.observe_files, ZeroDivisionError("no\nreason")

    def observe_files(segments, *args, **how):
        if any(part.names == ("b.fits",) for file in segments for part in file):
            raise fault
        return own(segments, *args, **how)

    how = {"source": tiny.get_config().survey.source, "root": None, "settings": ObserveSettings()}
    expected = read_and_observe(files[:1], preprocessing, **how)
    monkeypatch.setattr(observing, "observe_files", observe_files)
    good, bad = read_and_observe(files, preprocessing, **how)
    np.testing.assert_array_equal(good.arms["A"].flux, expected[0].arms["A"].flux)
    assert bad.messages == (f"{files[1]}: cannot be brought onto the arms' grids (ZeroDivisionError: no)",)
    assert caplog.records[-1].exc_info  # it may be a fault of ours
    for fault in (ConfigError("wrong"), MemoryError("full")):
        with pytest.raises(type(fault)):
            read_and_observe(files, preprocessing, **how)


@pytest.mark.parametrize("pixels", [1, 2, 3])
@pytest.mark.parametrize("width", [None, 2.5])
def test_a_spectrum_of_a_few_pixels_is_a_row_and_an_order_of_one_costs_nothing(preprocessing, pixels, width):
    wave, flux, ivar = tiny.star(0)

    def part(keep):
        fwhm = {} if width is None else {"fwhm": width}
        return make_spectra(wave[keep], flux[keep], medium="air", ivar=ivar[keep], names=["x"], **fwhm)

    few, rest = slice(40, 40 + pixels), slice(40 + pixels, None)
    alone, both, without = (
        observe([file], preprocessing) for file in ([part(few)], [part(few), part(rest)], [part(rest)])
    )
    assert len(alone) == len(both) == 1
    assert not alone.arms["A"].valid.any() or pixels > 1
    if pixels == 1:
        np.testing.assert_array_equal(both.arms["A"].flux, without.arms["A"].flux)
