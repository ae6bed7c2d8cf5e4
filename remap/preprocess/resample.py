"""Degrading spectra to an instrument's resolution and resampling them onto its grid.

NumPy and SciPy in float64: this is done once per library or survey, before anything is jitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import interpolate, sparse

from remap.preprocess.blocks import in_blocks
from remap.preprocess.bridging import bridge_gaps
from remap.preprocess.spline import Spline
from remap.spectra import Spectra, SpectrumError, make_spectra, to_medium

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
REACH = 4.0  # σ: closer to an end, the flux beyond it would matter
CUTOFF = 6.0  # σ: the variance that the tails beyond it hold is 7e-8 of the kernel's
FINEST = 16  # kernels narrower than the mean pixel divided by this change nothing
UNEVEN = 1e-4  # relative change of the pixel size from one pixel to the next that the quadrature bears
GAP = 4.0  # steps wider than this many times the usual one are gaps between orders or chips
BAD_WEIGHT = 0.01  # share of a kernel that may lie on bad pixels
CHUNK = 2**23  # elements of flux, and
BLOCK = 2**21  # of the matrix, in memory at a time


@dataclasses.dataclass(frozen=True, eq=False)
class LineSpread:
    """A Gaussian line-spread function, by its resolution λ/FWHM or by its FWHM; exactly one of them.

    Attributes:
      resolution: float, or float[N] with a value per pixel where it varies along the detector.
      fwhm: float or float[N], Å.
    """

    resolution: float | Sequence[float] | np.ndarray | None = None
    fwhm: float | Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.resolution is None) == (self.fwhm is None):
            raise ValueError(
                f"LineSpread: give either resolution or fwhm, found {self.resolution!r} and {self.fwhm!r}"
            )
        value = np.asarray(self.fwhm if self.resolution is None else self.resolution, np.float64)
        if value.ndim > 1 or not np.all(np.isfinite(value) & (value > 0)):
            raise ValueError(f"LineSpread: expected positive numbers, one or per pixel, found {value!r}")


def line_fwhm(lsf: LineSpread, wave: np.ndarray) -> np.ndarray:
    """FWHM float64[N] in Å at wavelengths [N] in Å; arrays in `lsf` must have a value for each.

    Examples:
      >>> import numpy as np
      >>> line_fwhm(LineSpread(resolution=2000.0), np.array([4000.0, 6000.0])).tolist()
      [2.0, 3.0]
    """
    value = np.asarray(lsf.fwhm if lsf.resolution is None else lsf.resolution, np.float64)
    if value.ndim and value.shape != wave.shape:
        raise ValueError(f"LineSpread: expected {wave.size} values, one per pixel, found {value.size}")
    return np.broadcast_to(value, wave.shape) if lsf.resolution is None else wave / value


def degrade(
    wave: ArrayLike, flux: ArrayLike, *, lsf: LineSpread, native: LineSpread | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Convolves spectra with the Gaussian that takes them from their own line spread to `lsf`.

    The kernel's FWHM at each output pixel is the difference in quadrature of the two there. Every pixel
    counts with its width, so the grid need not be uniform; where the pixels are uneven, or wider than σ,
    the flux is first interpolated by a cubic spline onto an even grid that is fine enough. Towards the ends
    the kernel is cut and renormalised, which keeps a constant but biases a slope.

    Args:
      wave: float64[N], Å, strictly increasing.
      flux: float[..., N], finite (a NaN spreads over its neighbours).
      lsf: the line spread wanted; arrays are per pixel of `wave`.
      native: the one that the spectra have; None means infinitely sharp.

    Returns:
      The flux float[..., N] on the same grid in its own precision, and reach_ok bool[N], False within 4σ of
      either end, where flux from beyond it is missing.

    Raises:
      ValueError: `lsf` is sharper than `native`, the grid does not increase, or the shapes differ.

    Examples:
      >>> import numpy as np
      >>> wave = np.linspace(5000, 5010, 101)
      >>> flux = 1 - 0.5 * np.exp(-0.5 * ((wave - 5005) / 0.1) ** 2)
      >>> blurred, reach_ok = degrade(wave, flux, lsf=LineSpread(resolution=5000.0))
      >>> f"{flux.min():.3f} {blurred.min():.3f}", int(reach_ok.sum())
      ('0.500 0.886', 66)
    """
    wave, flux = _check_grid(wave, "wave"), np.asarray(flux)
    if flux.ndim == 0 or flux.shape[-1] != wave.size:
        raise ValueError(f"flux must have {wave.size} pixels as wave has, found shape {flux.shape}")
    if not np.issubdtype(flux.dtype, np.floating):
        flux = flux.astype(np.float64)
    sigma = _kernel_sigma(wave, lsf, native)
    grid = _quadrature_grid(wave, sigma)
    (out,) = _convolve(wave, sigma, grid, (flux.reshape(-1, wave.size), 1))
    return out.reshape(flux.shape), _reach_ok(wave, sigma)


def resample(spectra: Spectra, new_wave: ArrayLike, *, medium: str) -> Spectra:
    """Interpolates spectra onto a new grid with a cubic spline (not-a-knot).

    Invalid pixels are bridged linearly before the spline, so that they do not ring, and an output pixel is
    invalid where one of the two pixels around it is (or the one that it coincides with), in a gap of the
    grid (a step more than four times the median and its neighbours) and outside the spectrum: nothing is
    extrapolated. Flux stays finite there but has no meaning. The inverse variance is that
    of the linearly interpolated variance of the valid pixels: the noise of a pixel of this size, and not
    that of the interpolated value, which is lower and correlated with its neighbours'.

    Args:
      spectra: S spectra of at least four pixels.
      new_wave: float64[M], Å, strictly increasing, in `medium`.
      medium: "air" or "vacuum"; the wavelengths of the spectra are converted.

    Returns:
      The spectra float[S, M] in the precision that they had; names and labels are kept.

    Raises:
      ValueError: `new_wave` does not increase, or the medium is unknown.
      SpectrumError: fewer than four pixels.

    Examples:
      >>> import numpy as np
      >>> from remap import make_spectra
      >>> wave = np.linspace(5000, 5010, 101)
      >>> spectra = make_spectra(wave, (wave - 5000) ** 2, medium="air")
      >>> resampled = resample(spectra, np.array([5001.03, 5005.55, 5011.0]), medium="air")
      >>> resampled.flux.round(4)[0, :2].tolist(), resampled.valid.tolist()
      ([1.0609, 30.8025], [[True, True, False]])
    """
    new_wave = _check_grid(new_wave, "new_wave")
    wave = to_medium(spectra.wave, source=spectra.medium, target=medium)
    if wave.size < 4:
        name = spectra.names[0] if spectra.names else "spectra"
        raise SpectrumError(f"{name}: expected at least 4 pixels to resample, found {wave.size}")

    # Conversion between media rounds; 1e-12 of the wavelength is the same pixel.
    nearest = _nearest(wave, new_wave)
    exact = np.abs(wave[nearest] - new_wave) <= 1e-12 * new_wave
    inside = ((new_wave >= wave[0]) & (new_wave <= wave[-1])) | exact
    left = np.clip(np.searchsorted(wave, new_wave, side="right") - 1, 0, wave.size - 2)
    inside &= exact | ~_gaps(wave)[left]
    left, right = np.where(exact, nearest, left), np.where(exact, nearest, left + 1)
    valid = spectra.valid[:, left] & spectra.valid[:, right] & inside

    at = np.clip(new_wave, wave[0], wave[-1])
    flux = np.empty(valid.shape, spectra.flux.dtype)
    ivar = None if spectra.ivar is None else np.zeros(valid.shape, spectra.ivar.dtype)
    fine = Spline.make(wave, at)

    def fill(rows: slice) -> None:
        flux[rows] = fine.values(_bridge(wave, spectra.flux[rows], spectra.valid[rows]))
        if ivar is not None:
            variance = _lines_at(at, wave, spectra.ivar[rows], spectra.valid[rows])
            np.divide(1, variance, out=ivar[rows], where=valid[rows], casting="same_kind")

    in_blocks(fill, len(spectra), wave.size)
    fwhm = None
    if spectra.fwhm is not None:
        fwhm = np.interp(new_wave, wave, spectra.fwhm)  # a width does not care for the medium: 3e-4 of it
    return make_spectra(
        new_wave,
        flux,
        medium=medium,
        valid=valid,
        ivar=ivar,
        names=spectra.names,
        labels=spectra.labels,
        fwhm=fwhm,
        facts=spectra.facts,
    )


def degrade_and_resample(
    spectra: Spectra,
    new_wave: ArrayLike,
    *,
    medium: str,
    lsf: LineSpread | None,
    native: LineSpread | None = None,
    keep_coarser: bool = False,
) -> Spectra:
    """`degrade` and then `resample`, on no more of the spectra than the new grid needs.

    Invalid pixels are bridged linearly, and an output pixel is invalid where more than 1 % of its kernel lay
    on such pixels or an end of the spectrum is within 4σ. Variances are propagated through the kernel; the
    noise of neighbouring pixels is correlated afterwards, which an inverse variance cannot tell.

    Args:
      spectra: S spectra.
      new_wave: float64[M], Å, strictly increasing, in `medium`.
      medium: "air" or "vacuum".
      lsf: the line spread wanted; arrays are per pixel of `new_wave`. None leaves out degrading.
      native: the one that the spectra have; arrays are per pixel of `spectra`. None is infinitely sharp.
      keep_coarser: leave pixels as they are whose own line spread is the wider one, instead of refusing them.

    Returns:
      The spectra float[S, M] with the line spread that they have now.

    Raises:
      ValueError, SpectrumError: as `degrade` and `resample`.
    """
    if lsf is None:
        return resample(spectra, new_wave, medium=medium)
    new_wave = _check_grid(new_wave, "new_wave")
    wave = spectra.wave
    target = to_medium(new_wave, source=medium, target=spectra.medium)
    fwhm = line_fwhm(_line_spread_on(lsf, target, wave), wave)
    if native is not None:  # beyond the new grid nothing is wanted, so nothing there can be too sharp
        own = line_fwhm(native, wave)
        beyond = keep_coarser | (wave < target[0]) | (wave > target[-1])
        fwhm = np.where(beyond, np.maximum(fwhm, own), fwhm)
    first, last = np.searchsorted(wave, target[[0, -1]])
    first, last = min(max(first - 1, 0), wave.size - 1), min(last, wave.size - 1)
    margin = CUTOFF * fwhm[first : last + 1].max() / FWHM_PER_SIGMA
    low, high = np.searchsorted(wave, [wave[first] - margin, wave[last] + margin])
    part = slice(max(low - 16, 0), high + 16)  # 16 pixels: the end of a spline fades by 0.27 per pixel
    if native is not None:
        native = LineSpread(fwhm=own[part])
    wave, flux, valid = wave[part], spectra.flux[:, part], spectra.valid[:, part]
    sigma = _kernel_sigma(wave, LineSpread(fwhm=fwhm[part]), native)

    first, last = np.searchsorted(wave, target[[0, -1]])
    if not _blurred(wave, sigma)[max(first - 1, 0) : last + 1].any():  # beyond, nobody sees what is blurred
        ivar = None if spectra.ivar is None else spectra.ivar[:, part].astype(np.float64)
        own = dataclasses.replace(spectra, wave=wave, flux=flux, valid=valid, ivar=ivar, fwhm=fwhm[part])
        return resample(own, new_wave, medium=medium)
    grid = _quadrature_grid(wave, sigma)
    light, more = (_bridge(wave, flux, valid), 1), []
    if spectra.ivar is not None:
        variance = 1 / np.where(valid, spectra.ivar[:, part], 1).astype(np.float64)
        more.append((_bridge(wave, variance, valid, empty=1.0), 2))
    if not valid.all():
        more.append((valid.astype(np.float64), 1))
    if grid is wave:
        flux, *more = _convolve(wave, sigma, grid, light, *more)
    else:
        (flux,), more = _convolve(wave, sigma, grid, light), _convolve(wave, sigma, wave, *more)
    ivar = None if spectra.ivar is None else 1 / more[0]
    if not valid.all():
        valid = more[-1] >= 1 - BAD_WEIGHT
    degraded = make_spectra(
        wave,
        flux,
        medium=spectra.medium,
        valid=valid & _reach_ok(wave, sigma),
        ivar=ivar,
        names=spectra.names,
        labels=spectra.labels,
        fwhm=fwhm[part],
        facts=spectra.facts,
    )
    return resample(degraded, new_wave, medium=medium)


def _lines_at(at: np.ndarray, wave: np.ndarray, ivar: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Variances [S, M] at some places, on straight lines between those of the valid pixels; 1 for rows without any.

    As `np.interp` for every row, to the last bit.
    """
    variance = 1 / np.where(valid, ivar, 1).astype(np.float64)
    variance = _bridge(wave, variance, valid, empty=1.0)
    left = np.clip(np.searchsorted(wave, at, side="right") - 1, 0, wave.size - 2)
    slope = np.diff(variance, axis=1)
    slope /= np.diff(wave)
    out = slope.take(left, axis=1)
    out *= at - wave[left]
    out += variance.take(left, axis=1)
    end = at == wave[-1]
    out[:, end] = variance[:, -1:]
    return out


def _line_spread_on(lsf: LineSpread, wave: np.ndarray, new_wave: np.ndarray) -> LineSpread:
    """A line spread given per pixel of `wave`, per pixel of `new_wave`; constant beyond the ends."""
    value = lsf.fwhm if lsf.resolution is None else lsf.resolution
    if np.ndim(value) == 0:
        return lsf
    line_fwhm(lsf, wave)  # checks the length
    value = np.interp(new_wave, wave, value)
    return LineSpread(fwhm=value) if lsf.resolution is None else LineSpread(resolution=value)


def _check_grid(wave: ArrayLike, name: str) -> np.ndarray:
    wave = np.asarray(wave, np.float64)
    if wave.ndim != 1 or wave.size < 2 or not np.all(np.isfinite(wave)) or np.any(np.diff(wave) <= 0):
        raise ValueError(
            f"{name} must be [N], N > 1, finite and strictly increasing, found shape {wave.shape}"
        )
    return wave


def _kernel_sigma(wave: np.ndarray, lsf: LineSpread, native: LineSpread | None) -> np.ndarray:
    """σ float64[N] in Å of the Gaussian that is missing between two line spreads."""
    wanted = line_fwhm(lsf, wave)
    own = np.zeros_like(wave) if native is None else line_fwhm(native, wave)
    sharper = wanted < own * (1 - 1e-9)  # equal ones may differ by rounding
    if sharper.any():
        i = int(np.argmax(sharper))
        raise SpectrumError(
            f"cannot sharpen: expected a native FWHM of at most {wanted[i]:.6g} Å at {wave[i]:.6g} Å, found "
            f"{own[i]:.6g} Å"
        )
    return np.sqrt(np.maximum(wanted**2 - own**2, 0)) / FWHM_PER_SIGMA


def _reach_ok(wave: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return (wave - wave[0] >= REACH * sigma) & (wave[-1] - wave >= REACH * sigma)


def _convolve(
    wave: np.ndarray, sigma: np.ndarray, grid: np.ndarray, *arrays: tuple[np.ndarray, int]
) -> list[np.ndarray]:
    """Gaussian convolutions with σ [N], integrated on a grid, of several arrays with the same kernels.

    Args:
      wave: float64[N], Å.
      sigma: float64[N], Å. Pixels of which it is far below their size stay as they are.
      grid: `wave`, or that of `_quadrature_grid`, to which a spline brings the values.
      *arrays: float[S, N] each, and the power of the kernel: 1, or 2 for variances.
    """
    blurred = _blurred(wave, sigma)
    out = [values.copy() for values, _ in arrays]
    if not blurred.any() or not arrays:
        return out
    rows = np.flatnonzero(blurred)
    low = np.searchsorted(grid, wave[rows] - CUTOFF * sigma[rows], side="left")
    high = np.searchsorted(grid, wave[rows] + CUTOFF * sigma[rows], side="right")
    width = np.gradient(grid)
    width[[0, -1]] /= 2
    cuts = np.flatnonzero(np.diff(np.cumsum(high - low) // BLOCK)) + 1
    step = max(1, CHUNK // grid.size)
    for i in range(0, len(out[0]), step):
        tables = []
        for values, power in arrays:
            values = values[i : i + step].astype(np.float64)
            if grid is not wave:
                values = interpolate.CubicSpline(wave, values, axis=1)(grid[: high.max()])
            tables.append((np.ascontiguousarray(values.T), power))
        for part in np.split(np.arange(rows.size), cuts):
            first, last = low[part].min(), high[part].max()
            matrix = _kernel(wave[rows[part]], sigma[rows[part]], grid, width, low[part], high[part])
            for convolved, (values, power) in zip(out, tables, strict=True):
                by = matrix if power == 1 else _squared(matrix)
                convolved[i : i + step, rows[part]] = (by @ values[first:last]).T
    return out


def _squared(matrix: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array((matrix.data**2, matrix.indices, matrix.indptr), shape=matrix.shape)


def _blurred(wave: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return sigma > (wave[-1] - wave[0]) / (FINEST * wave.size)


def _quadrature_grid(wave: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The grid to integrate on: `wave` itself, or an even and finer one where `wave` does not do.

    For a Gaussian the trapezoidal rule converges exponentially on an even (or smoothly changing) grid, to
    5e-9 where the step is σ, but only quadratically where the step jumps.
    """
    steps, blurred = np.diff(wave), _blurred(wave, sigma)
    if wave.size < 4 or not blurred.any():
        return wave
    even = np.all(np.abs(np.diff(np.log(steps))) < UNEVEN)
    if even and np.all(sigma >= np.gradient(wave), where=blurred):
        return wave
    finest = min(steps.min(), sigma[blurred].min())
    intervals = min(int(np.ceil((wave[-1] - wave[0]) / finest)), FINEST * wave.size)
    return np.linspace(wave[0], wave[-1], intervals + 1)


def _kernel(
    wave: np.ndarray,
    sigma: np.ndarray,
    grid: np.ndarray,
    width: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> sparse.csr_array:
    """Rows of the convolution matrix: Gaussians over grid[low:high] around each wavelength, of sum 1.

    Column 0 stands for grid[low.min()].
    """
    first, last = low.min(), high.max()
    count = high - low
    start = np.concatenate([[0], np.cumsum(count)])
    column = np.arange(start[-1]) + np.repeat(low - start[:-1], count)
    weight = grid[column]
    weight -= np.repeat(wave, count)
    weight /= np.repeat(sigma, count)
    weight = np.exp(-0.5 * weight**2) * width[column]
    weight /= np.repeat(np.add.reduceat(weight, start[:-1]), count)
    return sparse.csr_array((weight, column - first, start), shape=(len(wave), last - first))


def _bridge(wave: np.ndarray, flux: np.ndarray, valid: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Flux [S, N] with invalid pixels interpolated linearly from the valid ones, or `empty` without any."""
    if valid.all():
        return flux
    flux = np.where(valid, flux, empty)
    bridge_gaps(flux, valid, wave)
    return flux


def _nearest(wave: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Index of the pixel nearest to each wavelength."""
    right = np.clip(np.searchsorted(wave, at), 1, wave.size - 1)
    return right - (at - wave[right - 1] < wave[right] - at)


def _gaps(wave: np.ndarray) -> np.ndarray:
    """bool[N-1], True for the steps of a grid in which there is no data."""
    steps = np.diff(wave)
    around = np.maximum(np.append(steps[1:], 0), np.insert(steps[:-1], 0, 0))
    return steps > GAP * np.maximum(around, np.median(steps))
