"""From files to the arms' grids, some files at a time: what training and prediction have in common."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from remap import io
from remap.config import ConfigError, Section
from remap.preprocess.cleaning import mask_bad
from remap.preprocess.cosmic_rays import mask_cosmic_rays
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import needed_range
from remap.preprocess.observe import observe_files
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import Observed, nothing
from remap.preprocess.stationary import StationaryMask, find_stationary
from remap.preprocess.templates import Templates
from remap.spectra import Spectra, SpectrumError

logger = logging.getLogger(__name__)

FILES_AT_A_TIME = 256  # whose pixels are in memory
STARS_OF_A_MASK = 1000  # that stationary features are looked for in

# Reads the segments of file i, within a range of wavelengths [Å] or all of them.
Read = Callable[[int, tuple[float, float] | None], Sequence[Spectra]]


def read_and_observe(files: Sequence[Path], preprocessing: Preprocessing, **how: Any) -> list[Observed]:
    """All of what `observe_in_blocks` gives, whose arguments these are: an entry per file."""
    return [one for _, found in observe_in_blocks(files, preprocessing, **how) for one in found]


def observe_in_blocks(
    files: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    source: Section,
    root: str | None,
    settings: ObserveSettings,
    velocities: Sequence[float] | None = None,
    templates: Templates | None = None,
    stationary: StationaryMask | None = None,
) -> Iterator[tuple[slice, list[Observed]]]:
    """Spectra of files on the arms' grids, not yet joined to stars, `FILES_AT_A_TIME` files at a time.

    Args:
      source: how they are read, see `remap.io.read`.
      root: folder of the data, None = $REMAP_DATA.
      settings: how they are treated.
      velocities: km/s, of every file; NaN = a row that cannot be used. None = as the settings say.
      templates: of the library, to measure velocities with.
      stationary: places of the detector that are masked.

    Yields:
      Which of the files, and an entry for each with a row per spectrum; of a file that cannot be used, one row
      without pixels whose message says why.

    Raises:
      ConfigError: a declaration or setting that cannot be right; it would fail for every file.
    """
    names = io.distinct_names(files)
    for i in range(0, len(files), FILES_AT_A_TIME):
        some = slice(i, i + FILES_AT_A_TIME)
        given = None if velocities is None else velocities[some]
        yield (
            some,
            observe_some(
                names[some],
                preprocessing,
                files[some],
                reader(files[some], source, root),
                settings=settings,
                velocities=given,
                templates=templates,
                stationary=stationary,
            ),
        )


def reader(files: Sequence[Path], source: Section, root: str | None) -> Read:
    """What reads file i of some."""

    def read(i: int, within: tuple[float, float] | None) -> Sequence[Spectra]:
        return io.read_segments(files[i], source=source, data_root=root, within=within)

    return read


def stationary_mask(
    files: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    source: Section,
    root: str | None,
    settings: ObserveSettings,
    velocities: Sequence[float] | None = None,
) -> StationaryMask | None:
    """Features that stand still on the detector of a survey, from a first look at its spectra (paper §3.3).

    Args:
      velocities: km/s, of every file; None = what the files say, else by cross-correlation among the stars.

    Returns:
      The mask; None where no file is readable. Stars in files of several segments are looked at segment by segment.
    """
    step = max(1, -(-len(files) // STARS_OF_A_MASK))
    within = needed_range(preprocessing, velocity=settings.cross_correlation.limit)
    spectra: list[Spectra] = []
    speeds: list[float] = []
    for i in range(0, len(files), step):
        try:
            found = io.read_segments(files[i], source=source, data_root=root, within=within)
        except SpectrumError:
            continue  # told when it is read for good
        for part in found:
            part = mask_bad(part, settings.cleaning)
            spectra.append(mask_cosmic_rays(part, settings.cleaning) if settings.cosmic_rays else part)
            speeds += [float("nan") if velocities is None else velocities[i]] * len(part)
    if not spectra:
        return None
    mask = find_stationary(
        spectra, velocities=None if velocities is None else speeds, settings=settings.cleaning
    )
    width = sum(high - low for low, high in mask.intervals)
    logger.info(
        "stationary features: %d places of %.1f Å in all, from %d stars",
        len(mask.intervals),
        width,
        mask.stars,
    )
    return mask


def observe_some(
    names: Sequence[str],
    preprocessing: Preprocessing,
    files: Sequence[Path],
    read: Read,
    *,
    settings: ObserveSettings,
    velocities: Sequence[float] | None = None,
    templates: Templates | None = None,
    stationary: StationaryMask | None = None,
) -> list[Observed]:
    """`read_and_observe` of as many files as are in memory at a time.

    Args:
      names: of the files, which tell them apart from all others.
      read: the segments of each; raises SpectrumError for one that cannot be used.
    """
    within = needed_range(preprocessing, velocity=settings.cross_correlation.limit)
    got: dict[int, tuple[Spectra, ...]] = {}
    out: dict[int, Observed] = {}
    for i, file in enumerate(files):
        try:
            got[i] = tuple(_renamed(part, file.name, names[i]) for part in read(i, within))
        except io.OutsideError as error:
            # Whose it is is still of interest: a star with arms in several files needs not all of them.
            try:
                got[i] = tuple(_renamed(part, file.name, names[i]) for part in read(i, None))
            except SpectrumError:
                logger.warning("flagged: %s", error)
                out[i] = nothing(names[i], preprocessing, str(error))
        except SpectrumError as error:
            logger.warning("flagged: %s", error)
            out[i] = nothing(names[i], preprocessing, str(error))

    def observed(which: Sequence[int]) -> list[Observed]:
        given = None if velocities is None else [velocities[i] for i in which]
        return observe_files(
            [got[i] for i in which],
            preprocessing,
            settings=settings,
            velocities=given,
            templates=templates,
            stationary=stationary,
        )

    good = list(got)
    try:
        out |= dict(zip(good, observed(good), strict=True))
    except (ConfigError, MemoryError):
        raise
    except Exception:  # what a spectrum may hold that nobody has thought of must not cost the others
        for i in good:
            try:
                out[i] = observed([i])[0]
            except (ConfigError, MemoryError):
                raise
            except Exception as error:
                told = _told(error, files[i])
                logger.warning("flagged: %s", told, exc_info=not isinstance(error, SpectrumError))
                out[i] = nothing(names[i], preprocessing, told)
    return [out[i] for i in range(len(files))]


def _told(error: Exception, file: Path) -> str:
    if isinstance(error, SpectrumError):
        return str(error)
    first = str(error).partition("\n")[0][:200]
    return f"{file}: cannot be brought onto the arms' grids ({type(error).__name__}: {first})"


def _renamed(part: Spectra, own: str, name: str) -> Spectra:
    """Spectra with the name of their file in the form that tells it from other files of this name."""
    if own == name:
        return part
    return dataclasses.replace(part, names=tuple(n.replace(own, name, 1) for n in part.names))
