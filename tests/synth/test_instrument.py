"""The mock survey's spectrograph: blaze and line spread against their definitions."""

import numpy as np
import pytest

from remap.synth.instrument import blaze_function, line_spread


def test_blaze_is_a_sinc_of_the_stated_loss():
    x = np.linspace(-1, 1, 101)
    np.testing.assert_allclose(blaze_function(x, 0.4)[[0, 50, 100]], [0.6, 1.0, 0.6], atol=1e-9)
    np.testing.assert_allclose(blaze_function(x, 0.0), 1.0)
    assert np.all(np.diff(blaze_function(x, 0.4)[50:]) < 0)


def test_line_spread_has_its_fwhm():
    fine = np.arange(4990.0, 5010.0, 0.02)
    spike = np.zeros(fine.size)
    spike[500] = 1.0
    wave = np.arange(4995.0, 5005.0, 0.02)
    seen = line_spread(fine, spike, wave=wave, fwhm=np.full(wave.size, 0.5))
    above = wave[seen > 0.5 * seen.max()]
    assert above[-1] - above[0] == pytest.approx(0.5, abs=0.04)
    assert seen.sum() == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(ValueError, match="too little"):
        line_spread(fine, spike, wave=fine, fwhm=np.full(fine.size, 0.5))
