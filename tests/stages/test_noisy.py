"""Copies of the stars with noise: as much of it as is asked for, and a calibration that counts each star once."""

import shutil

import jax
import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.predict.held_out import predict_survey
from remap.stages.calibrate import calibrate
from remap.stages.noisy import noisy_inputs, repredict, stack
from remap.store.stars import readable_stars
from remap.store.workdir import read_calibration


@pytest.fixture(scope="module")
def survey(tiny_data, tiny_workdir):
    return predict_survey(tiny.config(tiny_data), tiny_workdir, readable_stars(tiny_workdir), "finetune")


def test_spectra_get_the_noise_that_they_lack(survey):
    key = jax.random.key(5)
    inputs, worse = noisy_inputs(survey, 10.0, key)
    own = {
        arm: np.where(x.raw.snr > 0, x.raw.snr, np.inf) for arm, x in survey.inputs.items()
    }  # unknown: perfect
    np.testing.assert_array_equal(worse, np.all([snr >= 15 for snr in own.values()], axis=0))
    assert worse.any()
    for arm, x in inputs.items():
        before, good = survey.inputs[arm].raw, x.raw.snr == 10
        added = np.sqrt(1 / 100 - 1 / own[arm][good] ** 2)
        pairs = zip(before.flux[good], x.raw.flux[good], strict=True)
        found = np.array([np.std((b[a > 0] / a[a > 0]) - 1) if (a > 0).any() else np.nan for a, b in pairs])
        seen = np.isfinite(found)
        assert seen.sum() > 5
        np.testing.assert_allclose(found[seen], added[seen], rtol=0.3)
        np.testing.assert_array_equal(x.raw.flux[~good], before.flux[~good])
        assert not np.array_equal(x.normalized.flux[good], survey.inputs[arm].normalized.flux[good])
    again, _ = noisy_inputs(survey, 10.0, key)
    np.testing.assert_array_equal(again["A"].raw.flux, inputs["A"].raw.flux)


def test_copies_are_one_after_the_other(survey):
    first = survey.held_out("val")
    inputs, _ = noisy_inputs(survey, 10.0, jax.random.key(5))
    second = repredict(survey, inputs).held_out("val")
    both = stack([first, second])
    count = len(survey.stars)
    for arm in first.arms:
        for part, rows in ((first, slice(count)), (second, slice(count, None))):
            np.testing.assert_array_equal(both.arms[arm].pmf[:, rows], part.arms[arm].pmf)
            np.testing.assert_array_equal(both.arms[arm].snr[rows], part.arms[arm].snr)
    np.testing.assert_array_equal(both.tested, np.tile(first.tested, 2))


def test_calibration_at_several_levels_counts_stars_once(tiny_data, tiny_workdir, tmp_path):
    work = shutil.copytree(tiny_workdir, tmp_path / "work")
    plain = calibrate(tiny.config(tiny_data, calibrate__min_stars=2), work)
    noisy = calibrate(tiny.config(tiny_data, calibrate__min_stars=2, calibrate__noise=(10.0, 5.0)), work)
    np.testing.assert_array_equal(noisy["stars"], plain["stars"])
    low = read_calibration(work)["all"]["widenings"]["teff"]["A+B"]["snr_low"]
    assert 1 < low < 11
    with pytest.raises(
        ConfigError, match=r"calibrate\.noise: expected S/N per pixel above 0, found \[-1\.0\]"
    ):
        calibrate(tiny.config(tiny_data, calibrate__noise=(-1.0,)), work)
