"""Observed spectra from their own pixels to the arms' grids: cleaned, at rest, of one line spread, one per star.

The order is that of the paper's §3.3 read for many surveys: bad pixels and cosmic rays are masked on the spectrum's
own pixels, the velocity is known or measured, then one convolution and one interpolation, and at last the exposures
of a star become one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remap.config import ConfigError, Section, record
from remap.preprocess.cleaning import CleaningSettings, mask_bad
from remap.preprocess.cosmic_rays import mask_cosmic_rays
from remap.preprocess.cosmic_rays_in_stack import mask_cosmic_rays_in_stack
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import coarser_than, observed_on_grid, snr_estimate
from remap.preprocess.stacking import StackSettings, stack
from remap.preprocess.stationary import StationaryMask, mask_stationary
from remap.preprocess.templates import Templates
from remap.preprocess.velocity import Velocities, measure_velocities
from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import SPEED_OF_LIGHT, Spectra, make_spectra

logger = logging.getLogger(__name__)

VELOCITIES = ("rest", "file", "measure")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObserveSettings:
    """How observed spectra are treated before a network sees them (config section `observe`).

    Attributes:
      velocity: where radial velocities come from that are not given: "rest" (the spectra are at rest), "file" (what
        the file says; measured where it does not) or "measure" (cross-correlation with the library).
      check: measure the velocities of all spectra and tell where they contradict what is used.
      tolerance: of that, km/s.
      coarser: how much wider than the networks' widest line spread a spectrum's may be, as a fraction, before its
        row is flagged.
      sharper: pixels per line spread beyond which a spectrum that does not say how wide its lines are is flagged:
        nobody samples lines so finely, so they are sharper than the networks know them.
      trust_width: spectra that do not say how wide their lines are have them as the networks know them, if they are
        not sampled finer than that; False flags them all, as spectra of another survey must be.
      join: spectra with one identifier of a star become one row.
      radius: arcsec; spectra with one identifier that lie farther apart stay rows of their own.
      bad_pixels: mask exact zeros and absurd values that no mask of the file tells.
      cosmic_rays: mask what stands out of single spectra and is narrower than a line can be, or, where a file has
        several exposures of a star, out of their median.
      stationary: look, when a survey is prepared, for features that stand still on its detector, and mask them.
      cleaning: see `remap.preprocess.cleaning`.
      cross_correlation: see `remap.preprocess.velocity`.
      stacking: see `remap.preprocess.stacking`.
    """

    velocity: str = "rest"
    check: bool = True
    tolerance: float = 20.0
    coarser: float = 0.25
    sharper: float = 8.0
    trust_width: bool = True
    join: bool = False
    radius: float = 5.0
    bad_pixels: bool = True
    cosmic_rays: bool = True
    stationary: bool = False
    cleaning: CleaningSettings = dataclasses.field(default_factory=CleaningSettings)
    cross_correlation: VelocitySettings = dataclasses.field(default_factory=VelocitySettings)
    stacking: StackSettings = dataclasses.field(default_factory=StackSettings)

    def __post_init__(self) -> None:
        if self.velocity not in VELOCITIES:
            raise ConfigError(f"observe.velocity must be one of {VELOCITIES}, found {self.velocity!r}")


def observe_settings(section: Section) -> ObserveSettings:
    """The settings from the config's section `observe`, whose subsections are those of the records in it.

    Raises:
      ConfigError: a field that is unknown or impossible.
    """
    plain = dict(section)
    parts = {"cleaning": CleaningSettings, "cross_correlation": VelocitySettings, "stacking": StackSettings}
    made = {
        name: record(cls, plain.pop(name), f"observe.{name}") for name, cls in parts.items() if name in plain
    }
    return record(ObserveSettings, {**plain, **made}, "observe")


class ArmOnGrid(NamedTuple):
    """Spectra of one arm on its grid, scaled to a largest value of 1."""

    flux: np.ndarray  # float32[S, N], 0 where invalid
    valid: np.ndarray  # bool[S, N]
    ivar: np.ndarray  # float32[S, N], of the scaled flux; NaN in rows where it is not known
    snr: np.ndarray  # float[S], per pixel; NaN = unknown
    scale: np.ndarray  # float[S], the largest value of before


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """Spectra as the networks take them, one row each.

    Attributes:
      names: S names of inputs.
      star_ids: S identifiers, "" = not known.
      arms: arm -> its spectra.
      velocity: float[S], km/s, that was taken out; NaN where it had to be measured and could not be.
      velocity_error: float[S], km/s, NaN = not known.
      measured: float[S], km/s, by cross-correlation; NaN = was not measured, or poorly.
      poor: bool[S], the velocity that was taken out was measured, poorly.
      doubtful: bool[S], it is poor, or contradicts the measured one.
      coarse: bool[S], the lines are wider than the networks know them, or of unknown width on very fine pixels.
      ra, dec: float[S], degrees, NaN = not known.
      inputs: int[S], how many exposures a row is made of.
      messages: S reasons why a row cannot be used, "" elsewhere.
      told: for the provenance: where the spectra came from and how they were read.
    """

    names: tuple[str, ...]
    star_ids: tuple[str, ...]
    arms: Mapping[str, ArmOnGrid]
    velocity: np.ndarray
    velocity_error: np.ndarray
    measured: np.ndarray
    poor: np.ndarray
    doubtful: np.ndarray
    coarse: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    inputs: np.ndarray
    messages: tuple[str, ...]
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


class Exposures(NamedTuple):
    """The spectra of some files, told apart by star and exposure."""

    names: list[str]
    star_ids: list[str]
    segments: list[Spectra]
    owner: list[np.ndarray]  # int[rows of the segment]: whose each is, -1 = not used


def split_exposures(files: Sequence[Sequence[Spectra]]) -> Exposures:
    """Tells apart the stars and exposures of the segments of some files.

    Rows of one file, name and exposure belong together: they are the arms, chips or orders of one spectrum. Of a star
    that has sums as well as single exposures in the file the sums alone are used.
    """
    index: dict[tuple[object, ...], int] = {}
    out = Exposures([], [], [], [])
    for file, segments in enumerate(files):
        summed = {
            name
            for part in segments
            for name, exposure in zip(part.names, part.fact("exposure"), strict=True)
            if not exposure
        }
        for part in segments:
            own = np.full(len(part), -1)
            met: dict[tuple[str, str], int] = {}
            told = zip(part.names, part.fact("exposure"), part.fact("star_id"), strict=True)
            for row, (name, exposure, star_id) in enumerate(told):
                if exposure and name in summed:
                    continue
                # Rows of one segment are never one spectrum, whatever they are called.
                met[name, exposure] = met.get((name, exposure), -1) + 1
                key = (file, name, exposure, met[name, exposure])
                if key not in index:
                    index[key] = len(out.names)
                    out.names.append(name)
                    out.star_ids.append(str(star_id))
                own[row] = index[key]
            out.segments.append(part)
            out.owner.append(own)
    return out


def observe(
    files: Sequence[Sequence[Spectra]],
    preprocessing: Preprocessing,
    *,
    settings: ObserveSettings | None = None,
    velocities: Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
    templates: Templates | None = None,
    stationary: StationaryMask | None = None,
) -> Observed:
    """The exposures of some files on the arms' grids, one row per exposure; `join` makes stars of them.

    Args:
      files: the segments of each, as `remap.io.read_segments` gives them.
      settings: None = `ObserveSettings()`.
      velocities: km/s, of each exposure in the order of first appearance, or by name; what is not finite makes a row
        that cannot be used. None = as `settings.velocity` says.
      templates: of the library, to measure velocities with.
      stationary: places of the detector that are masked before anything is shifted.

    Returns:
      One row per exposure. Nothing raises for a spectrum: one that cannot be used says why in `messages`.

    Raises:
      ConfigError: velocities are to be measured and there are no templates, or `velocities` are not as many.
    """
    settings = settings or ObserveSettings()
    split = split_exposures(files)
    count = len(split.names)
    split = _in_tables(split, settings)
    split = split._replace(segments=_cleaned(split, settings, stationary, preprocessing))
    told, errors = _told(split, count)
    given = _given(velocities, split.names)
    wanted = settings.velocity
    if templates is None and given is None and wanted == "measure":
        raise ConfigError(
            "velocities cannot be measured without templates of the library: run the stage preprocess again"
        )
    unmoved = np.zeros(count)
    measured = placed = None
    if templates is not None and (settings.check or (given is None and wanted != "rest")):
        placed = _place(split, unmoved, preprocessing, settings)
        measured = _measure({arm: on for arm, (on, _) in placed.items()}, split.star_ids, templates, settings)
    used, error = unmoved.copy(), np.full(count, np.nan)
    poor = np.zeros(count, bool)
    if given is not None:
        used = given
    elif wanted != "rest":
        from_file = np.isfinite(told) & (wanted == "file")
        used = np.where(from_file, told, np.nan)
        error = np.where(from_file, errors, np.nan)
        if measured is not None:
            used = np.where(from_file, used, measured.velocity)
            error = np.where(from_file, error, measured.error)
            poor = ~from_file & measured.poor
    apart = np.zeros(count, bool)
    if measured is not None and settings.check:
        apart = _contradicted(used, measured, settings)
    if placed is None:
        placed = _place(split, np.where(np.abs(used) < SPEED_OF_LIGHT, used, 0), preprocessing, settings)
    messages = []
    for i, (name, v) in enumerate(zip(split.names, used, strict=True)):
        message = f"{name}: expected a radial velocity [km/s], found {v}"
        if given is None and np.isnan(v):
            message = f"{name}: the velocity could not be measured: {_coverage(placed, i)}"
        messages.append("" if abs(v) < SPEED_OF_LIGHT else message)
    known = np.array([not m for m in messages], bool)
    moved = known & (used != 0)
    if measured is not None and moved.any():
        again = _place(split, np.where(moved, used, np.nan), preprocessing, settings)
        placed = {
            arm: (
                _merge(moved, again[arm][0], placed[arm][0]),
                np.where(moved, again[arm][1], placed[arm][1]),
            )
            for arm in placed
        }
    placed = {arm: (_without(on, ~known), coarse) for arm, (on, coarse) in placed.items()}
    return Observed(
        names=tuple(split.names),
        star_ids=tuple(split.star_ids),
        arms={arm: on for arm, (on, _) in placed.items()},
        velocity=np.where(known, used, np.nan),
        velocity_error=error,
        measured=np.where(measured.poor, np.nan, measured.velocity) if measured else np.full(count, np.nan),
        poor=poor,
        doubtful=poor | apart,
        coarse=np.any([coarse for _, coarse in placed.values()], axis=0),
        ra=_first_fact(split, "ra", count),
        dec=_first_fact(split, "dec", count),
        inputs=np.ones(count, int),
        messages=tuple(messages),
    )


def observe_files(
    files: Sequence[Sequence[Spectra]],
    preprocessing: Preprocessing,
    *,
    settings: ObserveSettings,
    velocities: Sequence[float] | None,
    templates: Templates | None,
    stationary: StationaryMask | None = None,
) -> list[Observed]:
    """`observe` of several files at once, taken apart again; `velocities` has one number per file."""
    if not files:
        return []
    counts = [len(split_exposures([segments]).names) for segments in files]
    each = None
    if velocities is not None:
        each = np.repeat(
            [_of_all(v, segments) for v, segments in zip(velocities, files, strict=True)], counts
        )
    found = observe(
        files, preprocessing, settings=settings, velocities=each, templates=templates, stationary=stationary
    )
    ends = np.cumsum(counts)
    return [_rows(found, slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]


def _of_all(velocity: float, segments: Sequence[Spectra]) -> float:
    """The velocity given for a file; NaN where the file has several stars, of which it says nothing."""
    names = {name for part in segments for name in part.names}
    if len(names) > 1 and np.isfinite(velocity):
        logger.warning("%s and others: one velocity was given for a file of %d stars", min(names), len(names))
        return float("nan")
    return velocity


def _rows(observed: Observed, index: slice) -> Observed:
    names = [field.name for field in dataclasses.fields(Observed) if field.name not in ("arms", "told")]
    arms = {arm: ArmOnGrid(*(x[index] for x in on)) for arm, on in observed.arms.items()}
    rows = {name: getattr(observed, name)[index] for name in names}
    return Observed(arms=arms, told=observed.told, **rows)


def concatenate(parts: Sequence[Observed]) -> Observed:
    """Rows of several, in their order."""
    return Observed(
        names=tuple(n for p in parts for n in p.names),
        star_ids=tuple(n for p in parts for n in p.star_ids),
        arms={
            arm: ArmOnGrid(*(np.concatenate(x) for x in zip(*(p.arms[arm] for p in parts), strict=True)))
            for arm in parts[0].arms
        },
        messages=tuple(m for p in parts for m in p.messages),
        **{
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in (
                "velocity",
                "velocity_error",
                "measured",
                "poor",
                "doubtful",
                "coarse",
                "ra",
                "dec",
                "inputs",
            )
        },
    )


def nothing(name: str, preprocessing: Preprocessing, message: str) -> Observed:
    """The row of an input that could not be read."""
    none = np.full(1, np.nan)
    arms = {}
    for arm in preprocessing.arms:
        shape = (1, len(preprocessing.wave(arm)))
        arms[arm] = ArmOnGrid(
            np.zeros(shape, np.float32),
            np.zeros(shape, bool),
            np.full(shape, np.nan, np.float32),
            none,
            np.ones(1),
        )
    no = np.zeros(1, bool)
    one = np.ones(1, int)
    return Observed((name,), ("",), arms, none, none, none, no, no, no, none, none, one, (message,))


def _in_tables(split: Exposures, settings: ObserveSettings) -> Exposures:
    """Segments on the same pixels as one: a table of many spectra costs a fraction of as many tables of one."""
    cleaning = settings.cleaning
    known = settings.trust_width or cleaning.fwhm is not None or cleaning.resolution is not None
    together: dict[object, list[int]] = {}
    for i, part in enumerate(split.segments):
        key: object = i
        # Cosmic rays are looked for among the exposures of a star, and with a line spread that may be one star's own.
        alone = (part.fwhm is None and not known) or bool(np.any(part.fact("exposure") != ""))
        if not (settings.cosmic_rays and alone):
            fwhm = None if part.fwhm is None else part.fwhm.tobytes()
            kind = part.flux.dtype, None if part.ivar is None else part.ivar.dtype
            key = (part.wave.tobytes(), part.medium, fwhm, kind)
        together.setdefault(key, []).append(i)
    return split._replace(
        segments=[_table([split.segments[i] for i in members]) for members in together.values()],
        owner=[np.concatenate([split.owner[i] for i in members]) for members in together.values()],
    )


def _table(parts: Sequence[Spectra]) -> Spectra:
    """Spectra on the same pixels as one container."""
    if len(parts) == 1:
        return parts[0]
    facts = dict.fromkeys(name for part in parts for name in part.facts)
    return dataclasses.replace(
        parts[0],
        flux=np.concatenate([p.flux for p in parts]),
        valid=np.concatenate([p.valid for p in parts]),
        ivar=None if parts[0].ivar is None else np.concatenate([p.ivar for p in parts]),
        names=tuple(name for p in parts for name in p.names),
        labels={},
        facts={name: np.concatenate([p.fact(name) for p in parts]) for name in facts},
    )


def _cleaned(
    split: Exposures,
    settings: ObserveSettings,
    stationary: StationaryMask | None,
    preprocessing: Preprocessing,
) -> list[Spectra]:
    """Bad pixels, cosmic rays and stationary features masked, in this order, each in what the last one left."""
    parts = split.segments
    used = [bool((own >= 0).any()) for own in split.owner]
    if settings.bad_pixels:
        parts = [mask_bad(p, settings.cleaning) if u else p for p, u in zip(parts, used, strict=True)]
    if settings.cosmic_rays:
        parts = _without_cosmic_rays(parts, used, settings, preprocessing)
    if stationary is not None:
        parts = [mask_stationary(p, stationary) for p in parts]
    return parts


def _without_cosmic_rays(
    parts: Sequence[Spectra], used: Sequence[bool], settings: ObserveSettings, preprocessing: Preprocessing
) -> list[Spectra]:
    """Exposures of one star and segment against each other, the rest along wavelength alone."""
    out = list(parts)
    together: dict[object, list[int]] = {}
    for i, part in enumerate(parts):
        if not used[i]:
            continue
        single = len(part) == 1 and part.fact("exposure")[0]
        key = (part.names[0], part.fact("star_id")[0], part.fact("segment")[0]) if single else i
        together.setdefault(key, []).append(i)
    blind = 0
    for members in together.values():
        own = [_with_width(parts[i], preprocessing, settings) for i in members]
        blind += sum(len(part) for part in own if not _sampled(part, settings.cleaning.min_sampling))
        if len(members) == 1:
            cleaned = [mask_cosmic_rays(own[0], settings.cleaning)]
        else:
            cleaned = list(mask_cosmic_rays_in_stack(own, settings.cleaning))
        for i, part in zip(members, cleaned, strict=True):
            out[i] = dataclasses.replace(parts[i], valid=part.valid)
    if blind:
        logger.warning(
            "cosmic rays are not looked for in most of the pixels of %d of %d segments: their lines are under %g "
            "pixels wide, or of unknown width",
            blind,
            sum(len(part) for part, u in zip(parts, used, strict=True) if u),
            settings.cleaning.min_sampling,
        )
    return out


def _with_width(part: Spectra, preprocessing: Preprocessing, settings: ObserveSettings) -> Spectra:
    """The same with the line spread that the networks know where it does not say its own and is trusted to be so."""
    if part.fwhm is not None or not settings.trust_width:
        return part
    wave = np.concatenate([preprocessing.wave(arm) for arm in preprocessing.arms])
    fwhm = np.concatenate([preprocessing.fwhm(arm) for arm in preprocessing.arms])
    order = np.argsort(wave)
    return dataclasses.replace(part, fwhm=np.interp(part.wave, wave[order], fwhm[order]))


def _sampled(part: Spectra, pixels: float) -> bool:
    """Whether lines are at least so many pixels wide, in half of the pixels or more."""
    return part.fwhm is not None and bool(np.mean(part.fwhm >= pixels * np.gradient(part.wave)) >= 0.5)


def _measure(
    arms: Mapping[str, ArmOnGrid], star_ids: Sequence[str], templates: Templates, settings: ObserveSettings
) -> Velocities:
    """Velocities of all rows; those whose noise is not known are measured apart, with equal weights."""
    if settings.join:
        arms = _with_other_arms(arms, star_ids)
    arms = {arm: on._replace(ivar=_known_noise(arm, arms)) for arm, on in arms.items()}
    unknown = np.all([np.isnan(on.ivar).all(axis=1) for on in arms.values()], axis=0)
    out: dict[str, np.ndarray] = {}
    for rows, known in ((~unknown, True), (unknown, False)):
        if not rows.any():
            continue
        part = {
            a: (on.flux[rows], on.valid[rows], on.ivar[rows] if known else None) for a, on in arms.items()
        }
        found = measure_velocities(part, templates, settings.cross_correlation)
        for field in dataclasses.fields(Velocities):
            values = getattr(found, field.name)
            out.setdefault(field.name, np.zeros(rows.size, values.dtype))[rows] = values
    return Velocities(**out)


def _with_other_arms(arms: Mapping[str, ArmOnGrid], star_ids: Sequence[str]) -> dict[str, ArmOnGrid]:
    """Rows of stars whose arms lie in files of their own, each with all arms of its star: they have one velocity."""
    groups: dict[str, list[int]] = {}
    for i, star_id in enumerate(star_ids):
        if star_id:
            groups.setdefault(star_id, []).append(i)
    has = {arm: on.valid.any(axis=1) for arm, on in arms.items()}
    split = [m for m in groups.values() if len(m) > 1 and all(has[arm][m].sum() <= 1 for arm in arms)]
    if not split:
        return dict(arms)
    out = {}
    for arm, on in arms.items():
        source = np.arange(len(star_ids))
        for members in split:
            owner = [i for i in members if has[arm][i]]
            source[members] = owner[0] if owner else members[0]
        out[arm] = ArmOnGrid(*(values[source] for values in on))
    return out


def _known_noise(arm: str, arms: Mapping[str, ArmOnGrid]) -> np.ndarray:
    """Inverse variances of an arm; where this one has none but another has, one number from the signal-to-noise."""
    on = arms[arm]
    missing = np.isnan(on.ivar).all(axis=1)
    known = np.any([~np.isnan(x.ivar).all(axis=1) for x in arms.values()], axis=0)
    rows = np.flatnonzero(missing & known & np.isfinite(on.snr) & (on.snr > 0))
    if not rows.size:
        return on.ivar
    out = on.ivar.copy()
    for i in rows:
        good = on.valid[i]
        level = np.median(np.abs(on.flux[i][good])) if good.any() else 0.0
        if level > 0:
            out[i] = (on.snr[i] / level) ** 2
    return out


def _coverage(placed: Mapping[str, tuple[ArmOnGrid, np.ndarray]], row: int) -> str:
    shares = ", ".join(f"{on.valid[row].mean():.0%} of arm {arm}" for arm, (on, _) in placed.items())
    return f"expected good pixels in the arms and lines of a star, found {shares} covered"


def _told(split: Exposures, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Velocities that the files say, and their errors."""
    return _first_fact(split, "rv", count), _first_fact(split, "rv_err", count)


def _first_fact(split: Exposures, name: str, count: int) -> np.ndarray:
    """float[E]: the first finite value among the segments of each exposure."""
    out = np.full(count, np.nan)
    for part, own in zip(split.segments, split.owner, strict=True):
        for row, value in zip(own, part.fact(name), strict=True):
            if row >= 0 and not np.isfinite(out[row]):
                out[row] = value
    return out


def _given(
    velocities: Mapping[str, float] | Sequence[float] | np.ndarray | None, names: Sequence[str]
) -> np.ndarray | None:
    """float[E], NaN for names without one."""
    if velocities is None:
        return None
    if isinstance(velocities, Mapping):
        return np.array([float(velocities.get(name, np.nan)) for name in names])
    found = np.asarray(velocities, float)
    if found.shape != (len(names),):
        raise ConfigError(f"expected {len(names)} velocities, found shape {found.shape}")
    return found


def _place(
    split: Exposures, velocity: np.ndarray, preprocessing: Preprocessing, settings: ObserveSettings
) -> dict[str, tuple[ArmOnGrid, np.ndarray]]:
    """Every exposure on every arm's grid, and whether its lines are too wide there.

    Args:
      velocity: float[E], km/s to take out; rows with NaN are left out.
    """
    out = {}
    for arm in preprocessing.arms:
        pixels = len(preprocessing.wave(arm))
        parts: list[list[Spectra]] = [[] for _ in velocity]
        coarse = np.zeros(len(velocity), bool)
        for segment, owner in zip(split.segments, split.owner, strict=True):
            unknown = segment.fwhm is None and (
                not settings.trust_width or _finely_sampled(segment, preprocessing, arm, settings.sharper)
            )
            for speed, rows in _by_velocity(owner, velocity):
                on = observed_on_grid(segment.rows(rows), preprocessing, arm, velocity=speed)
                wide = unknown or coarser_than(on, preprocessing, arm, tolerance=settings.coarser)
                for i, exposure in enumerate(owner[rows]):
                    if on.valid[i].any():
                        parts[exposure].append(on.rows(slice(i, i + 1)))
                        coarse[exposure] |= wide
        arm_out = empty_arm(len(velocity), pixels)
        for exposure, found in enumerate(parts):
            if found:
                one = found[0] if len(found) == 1 else stack(_together(found), settings=settings.stacking)
                put(arm_out, exposure, one)
        out[arm] = (arm_out, coarse)
    return out


def _by_velocity(owner: np.ndarray, velocity: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Rows of a segment that move together, each with the velocity; rows that are not used are left out."""
    rows = np.flatnonzero(owner >= 0)
    speed = velocity[owner[rows]]
    rows, speed = rows[np.isfinite(speed)], speed[np.isfinite(speed)]
    return [(float(v), rows[speed == v]) for v in np.unique(speed)]


def _finely_sampled(segment: Spectra, preprocessing: Preprocessing, arm: str, limit: float) -> bool:
    wave = preprocessing.wave(arm)
    near = (segment.wave >= wave[0]) & (segment.wave <= wave[-1])
    if np.count_nonzero(near) < 2:
        return False
    return bool(np.median(np.diff(segment.wave[near])) * limit < np.median(preprocessing.fwhm(arm)))


def _together(parts: Sequence[Spectra]) -> Spectra:
    """Rows on one grid as one container; inverse variances are dropped where one has none."""
    ivar = None
    if all(p.ivar is not None for p in parts):
        ivar = np.concatenate([np.asarray(p.ivar) for p in parts])
    return make_spectra(
        parts[0].wave,
        np.concatenate([p.flux for p in parts]),
        medium=parts[0].medium,
        valid=np.concatenate([p.valid for p in parts]),
        ivar=ivar,
        names=[n for p in parts for n in p.names],
    )


def empty_arm(count: int, pixels: int) -> ArmOnGrid:
    """Rows without a valid pixel."""
    return ArmOnGrid(
        np.zeros((count, pixels), np.float32),
        np.zeros((count, pixels), bool),
        np.full((count, pixels), np.nan, np.float32),
        np.full(count, np.nan),
        np.ones(count),
    )


def put(arm: ArmOnGrid, row: int, one: Spectra) -> None:
    """Writes one spectrum into a row, scaled to a largest value of 1: fluxes of 1e-17 would leave float32's range."""
    valid = one.valid[0]
    flux = np.where(valid, one.flux[0], 0.0)
    peak = np.abs(flux).max()
    peak = peak if peak > 0 else 1.0
    arm.flux[row] = (flux / peak).astype(np.float32)
    arm.valid[row] = valid
    if one.ivar is not None:
        # Signal to noise first: the square of a damaged file's flux of 1e200 is no number, and 0 of it NaN.
        with np.errstate(over="ignore"):
            ivar = (np.sqrt(np.where(valid, one.ivar[0], 0.0).astype(np.float64)) * peak) ** 2
            arm.ivar[row] = ivar
        arm.valid[row] &= np.isfinite(arm.ivar[row])
    arm.snr[row] = snr_estimate(one.flux, one.valid, one.ivar)[0]
    if one.ivar is None and np.isfinite(arm.snr[row]) and one.fact("snr")[0] > 0:
        arm.snr[row] = one.fact("snr")[0]  # the scatter of pixels takes lines for noise
    arm.scale[row] = peak


def _merge(take: np.ndarray, yes: ArmOnGrid, no: ArmOnGrid) -> ArmOnGrid:
    return ArmOnGrid(
        *(np.where(take.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(yes, no, strict=True))
    )


def _without(arm: ArmOnGrid, rows: np.ndarray) -> ArmOnGrid:
    """The same without a valid pixel in some rows."""
    if not rows.any():
        return arm
    return _merge(~rows, arm, empty_arm(len(arm.flux), arm.flux.shape[1]))


def _contradicted(used: np.ndarray, measured: Velocities, settings: ObserveSettings) -> np.ndarray:
    """bool[S]: the measured velocity is good and differs from the one that is used by more than the tolerance."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(measured.velocity - used)
        return ~measured.poor & (difference - 2 * measured.error > settings.tolerance)


def warn_of_velocities(observed: Observed, settings: ObserveSettings) -> None:
    """Logs how many spectra are not at the velocity that was taken out of them, and by how much."""
    with np.errstate(invalid="ignore"):
        difference = observed.measured - observed.velocity
        apart = observed.doubtful & (np.abs(difference) > settings.tolerance)
    if not apart.any():
        return
    worst = int(np.flatnonzero(apart)[np.argmax(np.abs(difference[apart]))])
    logger.warning(
        "%d of %d spectra are not at the velocity that is declared: measured less declared is %+.0f km/s in the "
        "median of these, %+.0f km/s for %s (flag VELOCITY); air and vacuum wavelengths differ by 83 km/s",
        np.count_nonzero(apart),
        len(observed),
        np.median(difference[apart]),
        difference[worst],
        observed.names[worst],
    )
