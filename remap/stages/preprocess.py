"""The stage `preprocess`: library and survey from their files onto the arms' grids, into the working folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from astropy.table import Table

from remap import io
from remap.config import Section, record
from remap.labels import LabelBins, check_labels, in_range
from remap.preprocess.description import Preprocessing, make_preprocessing
from remap.preprocess.grid import observed_on_grid, scale_to_unit, snr_estimate
from remap.spectra import SPEED_OF_LIGHT, Spectra, SpectrumError
from remap.stages.library import prepare_libraries
from remap.store.atomic import save_arrays, write_json
from remap.store.stars import STATUS_OK, STATUS_OUTSIDE, STATUS_UNLABELLED, STATUS_UNREADABLE
from remap.store.workdir import write_config

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyFiles:
    """Where the survey is and how it is read (config section `survey`).

    Attributes:
      path: a file, or a folder in which the names of the files match `patterns`.
      source: how a file is read, see `remap.io.read`.
      labels_path: the table of its stars.
      labels: how that is read, see `remap.io.read_labels`.
    """

    path: str
    patterns: Sequence[str]
    source: Section
    labels_path: str
    labels: Section


def preprocess(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Brings library and survey onto the arms' grids and writes them (docs: `remap.store.workdir`).

    Raises:
      SpectrumError: the library cannot be read, the survey folder is missing or empty, or none of its files
        is readable. A single bad survey file is left out, counted and kept in `stars.ecsv` with the reason.
      ValueError: the config contradicts itself or the data.
    """
    workdir = Path(workdir)
    preprocessing = make_preprocessing(config)
    data, root = workdir / "data", config.data_root or None
    survey = record(SurveyFiles, config.survey, "survey")
    vsini = config.labels.vsini.get("library_values", ()) if "vsini" in config.label_names else ()
    prepare_libraries(config, preprocessing, data, vsini)
    known = {b.name: config.labels[b.name].error for b in preprocessing.labels}
    stars, readable = _read_survey(survey, preprocessing, known, root)
    usable = np.array([s in (STATUS_OK, STATUS_UNLABELLED, STATUS_OUTSIDE) for s in stars["status"]])
    values = np.stack([np.asarray(stars[b.name], float) for b in preprocessing.labels], axis=1)
    errors = np.stack([np.asarray(stars[f"{b.name}_err"], float) for b in preprocessing.labels], axis=1)
    for arm in preprocessing.arms:
        flux, valid, snr = (np.stack(x) for x in zip(*(r[arm] for r in readable), strict=True))
        save_arrays(
            data / f"survey_{arm}.npz",
            flux=flux,
            valid=valid,
            snr=snr,
            labels=values[usable],
            errors=errors[usable],
        )
    stars.write(data / "stars.ecsv", format="ascii.ecsv", overwrite=True)
    write_json(data / "preprocessing.json", preprocessing.to_json())
    write_config(workdir, config)


def _read_survey(
    survey: SurveyFiles, preprocessing: Preprocessing, errors: Mapping[str, float], root: str | None
) -> tuple[Table, list[dict[str, tuple[np.ndarray, np.ndarray, float]]]]:
    """The table of survey spectra, and per readable one and arm its flux, mask and signal-to-noise.

    Args:
      errors: of labels that come without one.
      root: folder of the data, None = $REMAP_DATA.
    """
    bins = preprocessing.labels
    files = io.list_files(io.find_data(survey.path, root=root), survey.patterns)
    table = io.read_labels(io.find_data(survey.labels_path, root=root), source=survey.labels)
    row = {name: i for i, name in enumerate(table.files)}
    absent = sorted(set(table.files) - {f.name for f in files})
    if absent:
        logger.warning(
            "preprocess: %d labelled spectra have no file, the first is %s", len(absent), absent[0]
        )
    rows, readable = [], []
    for file in files:
        i = row.get(file.name)
        entry = {"file": file.name, "star_id": file.name if i is None else table.star_ids[i]}
        for b in bins:
            value = np.nan if i is None or b.name not in table.values else table.values[b.name][i]
            error = np.nan if i is None or b.name not in table.errors else table.errors[b.name][i]
            entry[b.name] = value
            entry[f"{b.name}_err"] = errors[b.name] if not np.isfinite(error) else error
        velocity = 0.0 if i is None or table.rv is None else table.rv[i]
        entry["status"], entry["reason"] = _label_status(np.array([entry[b.name] for b in bins]), bins)
        try:
            if not abs(velocity) < SPEED_OF_LIGHT:
                raise SpectrumError(f"{file.name}: expected a radial velocity [km/s], found {velocity}")
            spectra = io.read(file, source=survey.source, data_root=root)
            if len(spectra) != 1:
                raise SpectrumError(f"{file}: expected one spectrum per file, found {len(spectra)}")
            readable.append(
                {arm: _survey_arm(spectra, preprocessing, arm, velocity) for arm in preprocessing.arms}
            )
        except SpectrumError as error:
            entry["status"], entry["reason"] = STATUS_UNREADABLE, str(error)
            logger.warning("preprocess: left out: %s", error)
        rows.append(entry)
    if not readable:
        raise SpectrumError(
            f"survey {survey.path}: none of {len(files)} files is readable: {rows[0]['reason']}"
        )
    stars = Table(rows=rows)
    for b in bins:
        stars[b.name].unit = stars[f"{b.name}_err"].unit = b.unit
    ok = np.array([s == STATUS_OK for s in stars["status"]])
    check_labels(
        np.stack([np.asarray(stars[b.name][ok], float) for b in bins], axis=1),
        np.stack([np.asarray(stars[f"{b.name}_err"][ok], float) for b in bins], axis=1),
        bins,
        list(stars["file"][ok]),
    )
    counts = {str(s): int(np.count_nonzero(stars["status"] == s)) for s in sorted(set(stars["status"]))}
    logger.info("preprocess: survey of %d spectra: %s", len(stars), counts)
    return stars, readable


def _label_status(values: np.ndarray, bins: Sequence[LabelBins]) -> tuple[str, str]:
    """Status of a star by its labels, and the reason if it cannot be trained on for one."""
    if not np.isfinite(values).any():
        return STATUS_UNLABELLED, ""
    if not in_range(values[None], bins)[0]:
        return STATUS_OUTSIDE, "labels outside the bins"
    return STATUS_OK, ""


def _survey_arm(
    spectra: Spectra, preprocessing: Preprocessing, arm: str, velocity: float
) -> tuple[np.ndarray, np.ndarray, float]:
    out = observed_on_grid(spectra, preprocessing, arm, velocity=velocity)
    snr = snr_estimate(out.flux, out.valid, out.ivar)[0]
    return scale_to_unit(out.flux, out.valid)[0], out.valid[0], snr
