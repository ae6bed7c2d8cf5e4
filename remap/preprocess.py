"""One description of how spectra become network inputs, shared by library, survey and prediction.

The description travels with every checkpoint as plain JSON; `checkpoint.check_equal` refuses a mismatch with
both values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from remap import _version
from remap.continuum.common import NormalizeFn
from remap.continuum.normalizers import NORMALIZERS, get_normalizer
from remap.labels import LabelBins, label_bins
from remap.resample import LineSpread, degrade_and_resample, resample
from remap.spectra import MEDIA, Spectra, SpectrumError, doppler_shift

# Raised whenever the same settings would give other pixels; part of the description.
PREPROCESSING_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Everything that decides what the network sees.

    Attributes:
      arms: arm name -> (start, stop, step) of its grid [Å]; the grid is start, start + step, ... < stop.
      medium: of the grids.
      spreads: (kind, values) of the line spread given to the library: "resolution" or "fwhm" [Å].
      continuum: settings of the normaliser.
      labels: the bins of every label, in the order of the network's heads.
      version: `PREPROCESSING_VERSION` of the code that made it.
    """

    arms: dict[str, tuple[float, float, float]]
    medium: str
    spreads: tuple[str, tuple[float, ...]]
    continuum: dict[str, Any]
    labels: tuple[LabelBins, ...]
    version: int

    def wave(self, arm: str) -> np.ndarray:
        """float64[N], the grid of an arm [Å]."""
        start, stop, step = self.arms[arm]
        return start + step * np.arange(int(np.ceil((stop - start) / step - 1e-9)))

    def line_spreads(self) -> tuple[LineSpread, ...]:
        """The line spreads as records that `resample.degrade` takes."""
        kind, values = self.spreads
        return tuple(LineSpread(**{kind: value}) for value in values)

    def normalizer(self, arm: str) -> NormalizeFn:
        """The jit-able normaliser of an arm's spectra: (flux[S, N], valid[S, N]) -> normalised flux[S, N]."""
        method, settings = get_normalizer(self.continuum["name"]), self.continuum_settings(arm)
        return lambda flux, valid: method.normalize_batch(flux, valid, settings=settings).flux

    def continuum_settings(self, arm: str) -> Any:
        """The normaliser's settings record for an arm, whose pixels those given in Å need to know."""
        record = get_normalizer(self.continuum["name"]).settings
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.continuum.items() if k != "name"}
        for name in ("exceed", "snr"):  # 0 in a config stands for "not given"
            if name in values:
                values[name] = values[name] or None
        if "pixel" in _fields(record):
            values["pixel"] = self.arms[arm][2]
        return record(**values)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return {
            **dataclasses.asdict(self),
            "arms": {k: list(v) for k, v in self.arms.items()},
            "spreads": [self.spreads[0], list(self.spreads[1])],
            "labels": [dataclasses.asdict(b) for b in self.labels],
            "software": f"deep-remap {_version.__version__}",
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`.

        Raises:
          ValueError: made by another version of the preprocessing (both are named).
        """
        if value["version"] != PREPROCESSING_VERSION:
            raise ValueError(
                f"preprocessing version: expected {PREPROCESSING_VERSION}, found {value['version']} "
                f"(written by {value.get('software', 'unknown software')})"
            )
        return Preprocessing(
            arms={k: tuple(v) for k, v in value["arms"].items()},
            medium=value["medium"],
            spreads=(value["spreads"][0], tuple(value["spreads"][1])),
            continuum=dict(value["continuum"]),
            labels=tuple(LabelBins(**b) for b in value["labels"]),
            version=value["version"],
        )


def make_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """The description that a config asks for.

    Raises:
      ValueError: an arm without pixels, an unknown medium or normaliser (names the field and the value).
    """
    if config["grid_medium"] not in MEDIA:
        raise ValueError(f"grid_medium must be one of {MEDIA}, found {config['grid_medium']!r}")
    continuum = _plain(config["continuum"])
    if continuum["name"] not in NORMALIZERS:
        raise ValueError(f"continuum.name must be one of {sorted(NORMALIZERS)}, found {continuum['name']!r}")
    expected = _fields(NORMALIZERS[continuum["name"]].settings) - {"pixel"}
    if set(continuum) - {"name"} != expected:
        raise ValueError(
            f"continuum: {continuum['name']} takes the settings {sorted(expected)}, "
            f"found {sorted(set(continuum) - {'name'})}"
        )
    arms = {}
    for name in config["arm_names"]:
        if name not in config["arms"]:
            raise ValueError(f"arm {name} has no grid; the config knows {sorted(config['arms'])}")
        a = config["arms"][name]
        if not (a["step"] > 0 and a["stop"] > a["start"] > 0):
            raise ValueError(f"arm {name}: expected 0 < start < stop and step > 0, found {dict(a)}")
        arms[name] = (float(a["start"]), float(a["stop"]), float(a["step"]))
    if not arms:
        raise ValueError("arm_names must name at least one arm")
    return Preprocessing(
        arms=arms,
        medium=config["grid_medium"],
        spreads=(config["lsf"]["kind"], tuple(float(v) for v in config["lsf"]["values"])),
        continuum=continuum,
        labels=label_bins(config["label_names"], config["labels"]),
        version=PREPROCESSING_VERSION,
    )


# Å beyond the outermost pixels that degrading may look at: 4σ of any line spread below 25 Å, the shift
# between air and vacuum (1.6 Å at 5750 Å), and a spline's reach.
CROP_MARGIN = 50.0


def crop(spectra: Spectra, preprocessing: Preprocessing) -> Spectra:
    """The part of library spectra that the arms need, with a margin for degrading; labels and names stay."""
    ends = np.concatenate([preprocessing.wave(arm)[[0, -1]] for arm in preprocessing.arms])
    low, high = ends.min() - CROP_MARGIN, ends.max() + CROP_MARGIN
    keep = (spectra.wave >= low) & (spectra.wave <= high)
    if not keep.any():
        raise SpectrumError(
            f"{spectra.names[0]}: expected wavelengths between {low:.0f} and {high:.0f} Å, found "
            f"{spectra.wave[0]:.0f} to {spectra.wave[-1]:.0f} Å"
        )
    return dataclasses.replace(
        spectra,
        wave=spectra.wave[keep],
        flux=spectra.flux[:, keep].copy(),  # a view would keep the whole file in memory
        valid=spectra.valid[:, keep],
        ivar=None if spectra.ivar is None else spectra.ivar[:, keep],
    )


def _fields(record: type) -> set[str]:
    return {f.name for f in dataclasses.fields(record)}


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """A config section with lists for tuples, as JSON gives it back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}


def library_on_grid(
    spectra: Spectra, preprocessing: Preprocessing, arm: str, *, native: LineSpread | None
) -> tuple[np.ndarray, np.ndarray]:
    """Degraded and resampled library spectra, before noise and normalisation (§3.3 i-ii).

    Args:
      spectra: library spectra with positive flux.
      native: the library's own line spread; None = infinitely sharp.

    Returns:
      log_flux: float32[P, S, N], natural logarithm of the flux, each spectrum scaled to a maximum of 1.
      valid: bool[N], pixels that every line spread and every spectrum covers.

    Raises:
      ValueError: the library does not cover the arm, or has pixels without positive flux in it.
    """
    wave = preprocessing.wave(arm)
    fluxes, valid = [], np.ones(len(wave), bool)
    for spread in preprocessing.line_spreads():
        out = degrade_and_resample(spectra, wave, medium=preprocessing.medium, lsf=spread, native=native)
        valid &= out.valid.all(axis=0)
        fluxes.append(out.flux)
    if valid.mean() < 0.9:
        raise ValueError(
            f"library: expected to cover arm {arm} ({wave[0]:.1f}-{wave[-1]:.1f} Å {preprocessing.medium}), "
            f"found {valid.mean():.0%} of its pixels usable; its own range is "
            f"{spectra.wave[0]:.1f}-{spectra.wave[-1]:.1f} Å {spectra.medium}"
        )
    flux = np.where(valid, np.stack(fluxes), 1.0)
    bad = ~np.all(flux > 0, axis=(0, 2))
    if bad.any():
        raise ValueError(
            f"library: {spectra.names[int(np.argmax(bad))]} has flux at or below zero in arm {arm}"
        )
    peak = np.where(valid, flux, 0.0).max(axis=-1, keepdims=True)
    return np.where(valid, np.log(flux / peak), 0.0).astype(np.float32), valid


def observed_on_grid(
    spectra: Spectra, preprocessing: Preprocessing, arm: str, *, velocity: float = 0.0
) -> Spectra:
    """Observed spectra on an arm's grid, at rest.

    Args:
      spectra: as read, in their own medium and sampling.
      velocity: radial velocity to remove [km/s], positive when receding.

    Returns:
      The resampled spectra; pixels that the input does not cover are invalid.
    """
    if velocity:
        spectra = dataclasses.replace(spectra, wave=doppler_shift(spectra.wave, -velocity))
    return resample(spectra, preprocessing.wave(arm), medium=preprocessing.medium)


def scale_to_unit(flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """float32 flux divided by its largest valid absolute value, 0 at invalid pixels: safe in float32.

    The normaliser is scale-free, but fluxes of 1e-17 or 1e15 would leave float32's range.
    """
    flux = np.where(valid, flux, 0.0)
    peak = np.abs(flux).max(axis=-1, keepdims=True)
    return (flux / np.where(peak > 0, peak, 1.0)).astype(np.float32)


def snr_estimate(flux: np.ndarray, valid: np.ndarray, ivar: np.ndarray | None) -> np.ndarray:
    """Median signal-to-noise per pixel of each spectrum, NaN without valid pixels.

    From the inverse variance where it is known; otherwise from the flux alone (DER_SNR, Stoehr et al. 2008,
    ASPC 394, 505: noise = 1.482602/sqrt(6) · median |2 f_i - f_(i-2) - f_(i+2)|), which counts lines as noise
    and is a lower limit where lines are dense.

    Args:
      flux: float[S, N].
      valid: bool[S, N].
      ivar: float[S, N] or None.
    """
    out = np.full(len(flux), np.nan)
    for i, (f, v) in enumerate(zip(flux, valid, strict=True)):
        if not v.any():
            continue
        if ivar is not None:
            out[i] = np.median(f[v] * np.sqrt(ivar[i][v]))
            continue
        triple = v[4:] & v[2:-2] & v[:-4]
        noise = np.abs(2 * f[2:-2] - f[:-4] - f[4:])[triple]
        if noise.size:
            with np.errstate(divide="ignore", invalid="ignore"):  # a constant or zero spectrum
                out[i] = np.median(f[v]) / (1.482602 / np.sqrt(6) * np.median(noise))
    return out


def usable(flux: np.ndarray, valid: np.ndarray, *, min_coverage: float) -> np.ndarray:
    """bool[S]: spectra with enough valid pixels in an arm and positive flux in one of them at least.

    Args:
      flux: float[S, N].
      valid: bool[S, N].
      min_coverage: smallest valid fraction.
    """
    return (valid.mean(axis=1) >= min_coverage) & np.any((flux > 0) & valid, axis=1)


def model_inputs(flux: np.ndarray, valid: np.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Flux and mask as the device arrays that normaliser and network take."""
    return jnp.asarray(scale_to_unit(flux, valid)), jnp.asarray(valid)
