"""One description of how spectra become network inputs, shared by library, survey and prediction.

The description travels with every checkpoint as plain JSON; `checkpoint.check_equal` refuses a mismatch with
both values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from remap import _version, sharding
from remap.config import ConfigError, Section
from remap.continuum.common import NormalizeFn
from remap.continuum.normalizers import NORMALIZERS, get_normalizer
from remap.labels import LabelBins, label_bins
from remap.preprocess.resample import LineSpread, line_fwhm
from remap.spectra import MEDIA

# Raised whenever the same settings would give other pixels; part of the description.
PREPROCESSING_VERSION = 1


@dataclasses.dataclass(frozen=True)
class _Normalizer:
    """A normaliser with its settings; equal for equal ones, so that a program compiled for one serves the other."""

    name: str
    settings: Any

    def __call__(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        method = get_normalizer(self.name)

        def run(flux: jax.Array, valid: jax.Array) -> jax.Array:
            return method.normalize_batch(flux, valid, settings=self.settings).flux

        return sharding.by_rows(run)(flux, valid)


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

    def fwhm(self, arm: str) -> np.ndarray:
        """float64[N], Å: the line spread that observed spectra are brought to, the middle one of `line_spreads`."""
        kind, values = self.spreads
        middle = sorted(values)[len(values) // 2]
        return line_fwhm(LineSpread(**{kind: middle}), self.wave(arm))

    def coarsest(self, arm: str) -> np.ndarray:
        """float64[N], Å: the widest line spread that the networks have seen."""
        wave = self.wave(arm)
        return np.max([line_fwhm(spread, wave) for spread in self.line_spreads()], axis=0)

    def normalizer(self, arm: str) -> NormalizeFn:
        """The jit-able normaliser of an arm's spectra: (flux[S, N], valid[S, N]) -> normalised flux[S, N]."""
        return _Normalizer(self.continuum["name"], self.continuum_settings(arm))

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
            raise ConfigError(
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


def make_preprocessing(config: Section) -> Preprocessing:
    """The description that a config asks for.

    Raises:
      ConfigError: an arm without pixels, an unknown medium or normaliser, or impossible values (names the field and
        the value).
    """
    try:
        found = _preprocessing(config)
        found.line_spreads()
        for arm in found.arms:
            found.continuum_settings(arm)
        return found
    except ConfigError:
        raise
    except ValueError as error:  # of the records that it is made of
        raise ConfigError(str(error)) from error


def _preprocessing(config: Section) -> Preprocessing:
    if config["grid_medium"] not in MEDIA:
        raise ConfigError(f"grid_medium must be one of {MEDIA}, found {config['grid_medium']!r}")
    continuum = _plain(config["continuum"])
    if continuum["name"] not in NORMALIZERS:
        raise ConfigError(f"continuum.name must be one of {sorted(NORMALIZERS)}, found {continuum['name']!r}")
    expected = _fields(NORMALIZERS[continuum["name"]].settings) - {"pixel"}
    if set(continuum) - {"name"} != expected:
        raise ConfigError(
            f"continuum: {continuum['name']} takes the settings {sorted(expected)}, "
            f"found {sorted(set(continuum) - {'name'})}"
        )
    arms = {}
    for name in config["arm_names"]:
        if name not in config["arms"]:
            raise ConfigError(f"arm {name} has no grid; the config knows {sorted(config['arms'])}")
        a = config["arms"][name]
        if not (a["step"] > 0 and a["stop"] > a["start"] > 0):
            raise ConfigError(f"arm {name}: expected 0 < start < stop and step > 0, found {dict(a)}")
        arms[name] = (float(a["start"]), float(a["stop"]), float(a["step"]))
    if not arms:
        raise ConfigError("arm_names must name at least one arm")
    return Preprocessing(
        arms=arms,
        medium=config["grid_medium"],
        spreads=(config["lsf"]["kind"], tuple(float(v) for v in config["lsf"]["values"])),
        continuum=continuum,
        labels=label_bins(config["label_names"], dict(config["labels"])),
        version=PREPROCESSING_VERSION,
    )


def _fields(record: type) -> set[str]:
    return {f.name for f in dataclasses.fields(record)}


def _plain(section: Section) -> dict[str, Any]:
    """A config section with lists for tuples, as JSON gives it back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
