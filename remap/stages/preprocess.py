"""The stage `preprocess`: library and survey from their files onto the arms' grids, into the working folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from astropy.table import Table

from remap import io
from remap.config import Section, record
from remap.labels import LabelBins, check_labels, in_range
from remap.preprocess.description import Preprocessing, make_preprocessing
from remap.preprocess.grid import needed_range
from remap.preprocess.observe import (
    Observed,
    ObserveSettings,
    concatenate,
    join,
    observe,
    observe_settings,
    star_groups,
    warn_of_velocities,
)
from remap.preprocess.velocity import Templates, make_templates
from remap.spectra import SPEED_OF_LIGHT, SpectrumError
from remap.stages.library import prepare_libraries
from remap.store.atomic import save_arrays, write_json
from remap.store.stars import STATUS_OK, STATUS_OUTSIDE, STATUS_UNLABELLED, STATUS_UNREADABLE
from remap.store.workdir import save_templates, write_config

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
    templates = _templates(data, preprocessing)
    save_templates(workdir, templates)
    settings = observe_settings(config.observe)
    stars, observed = _read_survey(survey, preprocessing, known, root, settings, templates)
    usable = np.array([s in (STATUS_OK, STATUS_UNLABELLED, STATUS_OUTSIDE) for s in stars["status"]])
    values = np.stack([np.asarray(stars[b.name], float) for b in preprocessing.labels], axis=1)
    errors = np.stack([np.asarray(stars[f"{b.name}_err"], float) for b in preprocessing.labels], axis=1)
    for arm in preprocessing.arms:
        on = observed.arms[arm]
        save_arrays(
            data / f"survey_{arm}.npz",
            flux=on.flux,
            valid=on.valid,
            snr=on.snr,
            labels=values[usable],
            errors=errors[usable],
        )
    stars.write(data / "stars.ecsv", format="ascii.ecsv", overwrite=True)
    write_json(data / "preprocessing.json", preprocessing.to_json())
    write_config(workdir, config)


def _read_survey(
    survey: SurveyFiles,
    preprocessing: Preprocessing,
    errors: Mapping[str, float],
    root: str | None,
    settings: ObserveSettings,
    templates: Templates,
) -> tuple[Table, Observed]:
    """The table of survey spectra, and the readable ones on the arms' grids.

    Args:
      errors: of labels that come without one.
      root: folder of the data, None = $REMAP_DATA.
      settings: how the spectra are treated.
      templates: of the library.
    """
    bins = preprocessing.labels
    files = io.list_files(io.find_data(survey.path, root=root), survey.patterns)
    table = io.read_labels(io.find_data(survey.labels_path, root=root), source=survey.labels)
    of_file = table.rows_of(files)
    absent = sorted(set(range(len(table))) - set(of_file.tolist()))
    if absent:
        logger.warning(
            "preprocess: %d labelled spectra have no file, the first is %s",
            *(len(absent), table.files[absent[0]]),
        )
    within = needed_range(preprocessing, velocity=settings.cross_correlation.limit)
    rows, readable = [], []
    for file, name, at in zip(files, io.distinct_names(files), of_file.tolist(), strict=True):
        i = None if at < 0 else at
        entry = {"file": name, "star_id": name if i is None else table.star_ids[i]}
        for b in bins:
            value = np.nan if i is None or b.name not in table.values else table.values[b.name][i]
            error = np.nan if i is None or b.name not in table.errors else table.errors[b.name][i]
            entry[b.name] = value
            entry[f"{b.name}_err"] = errors[b.name] if not np.isfinite(error) else error
        given = None if i is None or table.rv is None else table.rv[i]
        entry["status"], entry["reason"] = _label_status(np.array([entry[b.name] for b in bins]), bins)
        try:
            if given is not None and not abs(given) < SPEED_OF_LIGHT:
                raise SpectrumError(f"{file.name}: expected a radial velocity [km/s], found {given}")
            segments = io.read_segments(file, source=survey.source, data_root=root, within=within)
            one = observe(
                [segments],
                preprocessing,
                settings=settings,
                velocities=None if given is None else [given],
                templates=templates,
            )
            if len(one) != 1:
                raise SpectrumError(f"{file}: expected one spectrum per file, found {len(one)}")
            if one.messages[0]:
                raise SpectrumError(one.messages[0])
            readable.append(dataclasses.replace(one, names=(file.name,), star_ids=(entry["star_id"],)))
        except SpectrumError as error:
            entry["status"], entry["reason"] = STATUS_UNREADABLE, str(error)
            logger.warning("preprocess: left out: %s", error)
        rows.append(entry)
    if not readable:
        raise SpectrumError(
            f"survey {survey.path}: none of {len(files)} files is readable: {rows[0]['reason']}"
        )
    observed = concatenate(readable)
    warn_of_velocities(observed, settings)
    if settings.join:
        rows, observed = _join_stars(rows, observed, preprocessing, settings, bins)
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
    return stars, observed


def _label_status(values: np.ndarray, bins: Sequence[LabelBins]) -> tuple[str, str]:
    """Status of a star by its labels, and the reason if it cannot be trained on for one."""
    if not np.isfinite(values).any():
        return STATUS_UNLABELLED, ""
    if not in_range(values[None], bins)[0]:
        return STATUS_OUTSIDE, "labels outside the bins"
    return STATUS_OK, ""


def _templates(data: Path, preprocessing: Preprocessing) -> Templates:
    """What velocities are measured with: spectra of the prepared library at the middle line spread."""
    flux, valid, labels = {}, {}, None
    for arm in preprocessing.arms:
        with np.load(data / f"library_{arm}.npz") as a:
            log_flux = a["log_flux"]
            flux[arm] = np.exp(log_flux[_middle(preprocessing)])
            valid[arm], labels = a["valid"], a["labels"]
    wave = {arm: preprocessing.wave(arm) for arm in preprocessing.arms}
    return make_templates(flux, valid, wave, labels, preprocessing.medium)


def _middle(preprocessing: Preprocessing) -> int:
    """Which of the line spreads is the one that observed spectra are brought to."""
    values = preprocessing.spreads[1]
    return values.index(sorted(values)[len(values) // 2])


def _join_stars(
    rows: list[dict[str, Any]],
    observed: Observed,
    preprocessing: Preprocessing,
    settings: ObserveSettings,
    bins: Sequence[LabelBins],
) -> tuple[list[dict[str, Any]], Observed]:
    """Rows of one star as one; those that cannot be read stay rows of their own.

    A star has the labels of the first of its rows that has some; others must not contradict them.
    """
    good = [r for r in rows if r["status"] != STATUS_UNREADABLE]
    joined = join(observed, preprocessing, settings=settings)
    stars = []
    for members, name in zip(star_groups(observed, settings=settings), joined.names, strict=True):
        some = [good[i] for i in members]
        told = [r for r in some if r["status"] != STATUS_UNLABELLED] or some
        for other in told[1:]:
            different = [
                b.name for b in bins if not np.isclose(other[b.name], told[0][b.name], equal_nan=True)
            ]
            if different:
                raise ConfigError(
                    f"{other['file']} and {told[0]['file']} are of the star {told[0]['star_id']}, but have different "
                    f"labels {different}; observe.join makes them one"
                )
        stars.append({**told[0], "file": name})
    kept = iter(stars)
    firsts = {id(good[members[0]]) for members in star_groups(observed, settings=settings)}
    out = []
    for entry in rows:
        if entry["status"] == STATUS_UNREADABLE:
            out.append(entry)
        elif id(entry) in firsts:
            out.append(next(kept))
    logger.info("preprocess: %d spectra joined to %d stars", len(good), len(stars))
    return out, joined
