"""The stage `preprocess`: library and survey from their files onto the arms' grids, into the working folder."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from astropy.table import Table

from remap import io
from remap.config import ConfigError, Section, record
from remap.labels import LabelBins, check_labels, in_range
from remap.predict.observing import observe_in_blocks, stationary_mask
from remap.preprocess.description import Preprocessing, make_preprocessing
from remap.preprocess.joining import join, star_groups
from remap.preprocess.observe_settings import ObserveSettings, observe_settings
from remap.preprocess.same_star import connected, near_pairs, same_names
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates, make_templates
from remap.preprocess.velocity_choice import warn_of_velocities
from remap.spectra import SpectrumError
from remap.stages.library import prepare_libraries
from remap.store.atomic import Blocks, read_arrays, save_blocks, write_json
from remap.store.lock import NAME, hold, unfinished
from remap.store.rows import PIXELS, ObservedRows, join_blocks, observed_rows
from remap.store.stars import STATUS_OK, STATUS_OUTSIDE, STATUS_UNLABELLED, STATUS_UNREADABLE
from remap.store.workdir import library_path, save_stationary, save_templates, write_config, write_stars

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyFiles:
    """Where the survey is and how it is read (config section `survey`).

    Attributes:
      path: a file, or a folder in which the names of the files match `patterns`; "" = there is no survey: networks
        are pre-trained alone, and how files are read is said where they are predicted.
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
    data = workdir / "data"
    before, spoilt = _contents(data), unfinished(data)
    with hold(data) as held:
        try:
            _preprocess(config, workdir, preprocessing)
        except BaseException:
            # A full disk or Ctrl-C between two files: they may be of two preparations, as after a kill.
            held.spoilt = spoilt or _contents(data) != before
            raise


def _contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """What tells each file of a folder from one that takes its place."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file() and path.name != NAME}
    return {path: (each.st_ino, each.st_mtime_ns) for path, each in found.items()}


def _preprocess(config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing) -> None:
    data, root = workdir / "data", config.data_root or None
    survey = record(SurveyFiles, config.survey, "survey")
    vsini = config.labels.vsini.get("library_values", ()) if "vsini" in config.label_names else ()
    prepare_libraries(config, preprocessing, data, vsini)
    known = {b.name: config.labels[b.name].error for b in preprocessing.labels}
    templates = _templates(data, preprocessing)
    save_templates(workdir, templates)
    settings = observe_settings(config.observe)
    if not survey.path:
        save_stationary(workdir, None)
        for stale in (data / "stars.ecsv", *(data / f"survey_{arm}.npz" for arm in preprocessing.arms)):
            stale.unlink(missing_ok=True)
        write_json(data / "preprocessing.json", preprocessing.to_json())
        write_config(workdir, config)
        logger.info("preprocess: no survey, survey.path is empty")
        return
    with observed_rows(data, preprocessing) as make:
        stars, rows, kept, stationary = _read_survey(
            survey, preprocessing, known, root, settings, templates, make
        )
        save_stationary(workdir, stationary)
        usable = np.array([s in (STATUS_OK, STATUS_UNLABELLED, STATUS_OUTSIDE) for s in stars["status"]])
        values = np.stack([np.asarray(stars[b.name], float) for b in preprocessing.labels], axis=1)
        errors = np.stack([np.asarray(stars[f"{b.name}_err"], float) for b in preprocessing.labels], axis=1)
        for arm in preprocessing.arms:
            pixels = {
                name: Blocks((len(kept), rows.width(arm)), PIXELS[name], rows.blocks(arm, name, kept))
                for name in ("flux", "valid")
            }
            save_blocks(
                data / f"survey_{arm}.npz",
                **pixels,
                snr=rows.snr(arm, kept),
                labels=values[usable],
                errors=errors[usable],
            )
    write_stars(workdir, stars)
    write_json(data / "preprocessing.json", preprocessing.to_json())
    write_config(workdir, config)


def _read_survey(
    survey: SurveyFiles,
    preprocessing: Preprocessing,
    errors: Mapping[str, float],
    root: str | None,
    settings: ObserveSettings,
    templates: Templates,
    make: Callable[[int], ObservedRows],
) -> tuple[Table, ObservedRows, np.ndarray, StationaryMask | None]:
    """The table of survey spectra, their rows on the arms' grids, which of these count, and the mask of the detector.

    Args:
      errors: of labels that come without one.
      root: folder of the data, None = $REMAP_DATA.
      settings: how the spectra are treated.
      templates: of the library.
      make: rows for the spectra; of the spectra of files that were read together alone there must be room in memory.
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
    names = io.distinct_names(files)
    source = {"source": survey.source, "root": root}
    given = None
    if table.rv is not None:  # of a star that the table does not know, nobody has said that it is at rest
        given = np.where(of_file >= 0, table.rv[of_file], np.nan)
    stationary = None
    if settings.stationary:
        stationary = stationary_mask(files, preprocessing, settings=settings, velocities=given, **source)
    found = make(len(files))
    reasons = [""] * len(files)
    stars_of = [
        name if at < 0 else table.star_ids[at] for name, at in zip(names, of_file.tolist(), strict=True)
    ]
    places = np.full((len(files), 3), np.nan)  # degrees, degrees, arcsec
    said = [""] * len(files)  # by files whose stars the table does not name
    known = of_file >= 0 if given is not None else np.zeros(len(files), bool)
    for some, own, how in (
        (np.flatnonzero(known), given, settings),
        (np.flatnonzero(~known), None, _unless_given(settings, table)),
    ):
        blocks = observe_in_blocks(
            [files[i] for i in some],
            preprocessing,
            settings=how,
            velocities=None if own is None else own[some].tolist(),
            templates=templates,
            stationary=stationary,
            **source,
        )
        for block, parts in blocks:
            for i, part in zip(some[block].tolist(), parts, strict=True):
                reasons[i] = part.messages[0]
                if len(part) != 1:
                    reasons[i] = f"{files[i]}: expected one spectrum per file, found {len(part)}"
                if not reasons[i]:
                    places[i] = part.ra[0], part.dec[0], part.star_within[0]
                    if of_file[i] >= 0 and table.names_stars:
                        part = dataclasses.replace(part, star_within=np.full(1, np.nan))
                    elif of_file[i] >= 0 and not places[i, 2] > 0:
                        said[i] = part.star_ids[0]
                    elif part.star_ids[0] and places[i, 2] > 0:
                        stars_of[i] = part.star_ids[0]
                    found.put([i], dataclasses.replace(part, names=(names[i],), star_ids=(stars_of[i],)))
            del parts, part  # before the next are in memory, too
    _warn_of_visits(said, str(table.path))
    rows, sides = [], _sides(stars_of, places)
    for name, star, at, reason in zip(names, sides, of_file.tolist(), reasons, strict=True):
        i = None if at < 0 else at
        entry = {"file": name, "star_id": star}
        for b in bins:
            value = np.nan if i is None or b.name not in table.values else table.values[b.name][i]
            error = np.nan if i is None or b.name not in table.errors else table.errors[b.name][i]
            entry[b.name] = value
            entry[f"{b.name}_err"] = errors[b.name] if not np.isfinite(error) else error
        entry["status"], entry["reason"] = _label_status(np.array([entry[b.name] for b in bins]), bins)
        if reason:
            entry["status"], entry["reason"] = STATUS_UNREADABLE, reason
            logger.warning("preprocess: left out: %s", reason)
        rows.append(entry)
    kept = np.flatnonzero([not reason for reason in reasons])
    if not kept.size:
        raise SpectrumError(
            f"survey {survey.path}: none of {len(files)} files is readable: {rows[0]['reason']}"
        )
    warn_of_velocities(found.facts(kept), settings)
    if settings.join:
        rows, found, kept = _join_stars(rows, found, kept, preprocessing, settings, bins, make)
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
    return stars, found, kept, stationary


def _sides(stars: Sequence[str], places: np.ndarray) -> list[str]:
    """Identifiers by which splits go: spectra that could be of one star have that of the first of them.

    Up to twice the distance at which rows are joined: a star on both sides spoils a split, two stars on one do not.

    Args:
      stars: S identifiers.
      places: float[S, 3], right ascension and declination [degrees] and the fact `star_within` [arcsec].
    """
    ra, dec, within = places.T
    pairs = near_pairs(ra, dec, 2 * within)
    if not len(pairs):
        return list(stars)
    out = list(stars)
    for members in connected(len(out), [*same_names(stars), *pairs.tolist()]):
        for i in members:
            out[i] = stars[members[0]]
    changed = sum(one != other for one, other in zip(out, stars, strict=True))
    if changed:
        logger.info(
            "preprocess: %d spectra have in stars.ecsv the identifier of another one that lies within %g arcsec, so "
            "that both are on one side of every split",
            *(changed, 2 * np.nanmax(within)),
        )
    return out


def _warn_of_visits(said: Sequence[str], where: str) -> None:
    """Logs that labelled files of one star, by what they say, are stars of their own by the table of labels."""
    visits = len(same_names(said))
    if visits:
        often = next(name for name, count in collections.Counter(said).most_common() if name and count > 1)
        logger.warning(
            "%s: %d labelled files say that they are of a star that another one is of, too (such as %r), but the "
            "table does not name stars: visits of one star may be on both sides of a split; name them in id_column",
            *(where, visits, often),
        )


def _unless_given(settings: ObserveSettings, table: io.LabelTable) -> ObserveSettings:
    """Settings for files that the table of labels does not know: with velocities of others, theirs are not 0."""
    if table.rv is None or settings.velocity != "rest":
        return settings
    return dataclasses.replace(settings, velocity="file")


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
        names = ("log_flux", "valid", "labels")
        a = read_arrays(library_path(data, arm), names, "run this stage again")
        flux[arm] = np.exp(a["log_flux"][_middle(preprocessing)])
        valid[arm], labels = a["valid"], a["labels"]
    wave = {arm: preprocessing.wave(arm) for arm in preprocessing.arms}
    return make_templates(flux, valid, wave, labels, preprocessing.medium)


def _middle(preprocessing: Preprocessing) -> int:
    """Which of the line spreads is the one that observed spectra are brought to."""
    values = preprocessing.spreads[1]
    return values.index(sorted(values)[len(values) // 2])


def _join_stars(
    rows: list[dict[str, Any]],
    found: ObservedRows,
    kept: np.ndarray,
    preprocessing: Preprocessing,
    settings: ObserveSettings,
    bins: Sequence[LabelBins],
    make: Callable[[int], ObservedRows],
) -> tuple[list[dict[str, Any]], ObservedRows, np.ndarray]:
    """Rows of one star as one; those that cannot be read stay rows of their own.

    A star has the labels of the first of its rows that has some; others must not contradict them.
    """
    good = [r for r in rows if r["status"] != STATUS_UNREADABLE]
    groups = star_groups(found.facts(kept), settings=settings)
    joined, at = make(len(groups)), 0
    for some in join_blocks(groups):
        block = found.take(kept[[i for group in some for i in group]])
        # Who belongs together is known: of rows that do not, some alone could lie near each other.
        alone = [len(group) == 1 for group in some for _ in group]
        first = np.cumsum([0, *map(len, some)])  # identifiers of one star may differ between visits
        heads = [block.star_ids[i] for i, group in zip(first, some, strict=False) for _ in group]
        ids = tuple("" if one else star for one, star in zip(alone, heads, strict=True))
        block = dataclasses.replace(block, star_ids=ids, star_within=np.full(len(block), np.nan))
        joined.put(range(at, at + len(some)), join(block, preprocessing, settings=settings))
        at += len(some)
    stars = []
    for members, name in zip(groups, joined.facts(range(len(groups))).names, strict=True):
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
    rest = iter(stars)
    firsts = {id(good[members[0]]) for members in groups}
    out = []
    for entry in rows:
        if entry["status"] == STATUS_UNREADABLE:
            out.append(entry)
        elif id(entry) in firsts:
            out.append(next(rest))
    logger.info("preprocess: %d spectra joined to %d stars", len(good), len(stars))
    return out, joined, np.arange(len(groups))
