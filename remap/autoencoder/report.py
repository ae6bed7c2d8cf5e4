"""The report of the autoencoder route: is the gap between library and survey smaller, and are the labels better?

Known labels of survey stars serve here alone, never for training. Features are compared on equal labels: to every
star whose labels lie inside the library belongs a library spectrum drawn at just these labels, so that a classifier
that tells the two apart sees the gap and not the sample.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np
from astropy.table import Table
from jaxtyping import Float

from remap.autoencoder.errors import (
    GapSettings,
    gap_settings,
    label_rows,
    library_rows,
    reconstruction_rows,
    zero_shot,
)
from remap.autoencoder.estimate import catalogue_settings, estimate_sky
from remap.autoencoder.inputs import Pool, pool_at
from remap.autoencoder.members import (
    ADAPT,
    AUTOENCODER,
    REGRESSOR,
    EnsembleSettings,
    Member,
    Route,
    encode,
    open_route,
    read_members,
)
from remap.autoencoder.regress import load_regressors
from remap.autoencoder.sources import Sky, Source, encode_stars, held_pool, read_sky, read_source
from remap.config import Section, record
from remap.network.discrepancy import median_distance
from remap.predict.catalogue import Catalogue
from remap.report.maps import latent_maps
from remap.report.plots import groups_one_to_one, training_curves
from remap.report.two_sample import classifier_auc, feature_tests, mmd_test
from remap.sampling.sources import locate
from remap.store.records import read_records
from remap.store.stars import labelled_rows, readable_stars, within
from remap.store.tables import ecsv_writer
from remap.train.keys import root_key
from remap.writing import check_writable, write_files

logger = logging.getLogger(__name__)

WIDTHS = (0.5, 1.0, 2.0)  # of the kernels of the MMD, in median distances of the library's features


class Report(NamedTuple):
    """The tables of `report`."""

    domains: Table  # how well the two domains can be told apart, before and after
    reconstruction: Table  # error of the reconstructed flux in both domains, before and after
    labels: Table  # estimates against known labels


def report(config: ml_collections.ConfigDict, workdir: str | Path, *, date: str | None = None) -> Report:
    """Diagnostics and label errors of a finished route; writes them to `workdir`/bridge.

    domains.ecsv, reconstruction.ecsv, labels.ecsv, estimates.fits (the survey's catalogue) and before.fits (the
    same without the fine-tuning) and, where matplotlib and scikit-learn are there, figures.

    Args:
      date: of the catalogues, ISO 8601; None = now.
    """
    gap, settings = gap_settings(config), catalogue_settings(config)
    groups_of_stars = config.evaluate.groups
    route = open_route(config, Path(workdir))
    out = route.workdir / "bridge"
    check_writable(out / "estimates.fits")
    stars = readable_stars(route.workdir)
    source, sky = read_source(route), read_sky(route)
    members = {name: read_members(route, name) for name in ("library", "adapted")}
    held = held_pool(route, source)

    catalogues = {
        "before": estimate_sky(route, settings, members["library"], sky, adapted=False, date=date),
        "after": estimate_sky(route, settings, members["adapted"], sky, adapted=True, date=date),
    }
    for name, found in catalogues.items():
        found.write(out / ("estimates.fits" if name == "after" else "before.fits"), overwrite=True)
    names = [b.name for b in route.preprocessing.labels]
    known = labelled_rows(route.workdir, stars)
    routes = zero_shot(config, route.workdir, stars, known)
    routes |= {name: _of_rows(found, known) for name, found in catalogues.items()}
    rows = label_rows(gap, groups_of_stars, stars[known], sky.usable[known], routes)
    labels = Table(rows + _library_rows(route, gap, members, held, names))
    scale = source.window.high - source.window.low
    reconstruction = Table(reconstruction_rows(gap, members, sky, held.pixels, scale=scale))
    matched = match(config, source, stars, sky, names)
    features, domains = None, Table()
    if matched is not None:
        features = _features(members, sky, matched, chunk=route.autoencoder.chunk)
        groups = {"all": np.ones(len(stars), bool), "kept aside": sky.held}
        for name, limits in groups_of_stars.items():
            groups.setdefault(name, within(stars, limits))
        groups = {name: mask[matched.stars] for name, mask in groups.items()}
        domains = Table(_domain_rows(gap, pairs(features, route.regressor.encoder), groups))
    tables = {"labels": labels, "reconstruction": reconstruction} | (
        {} if matched is None else {"domains": domains}
    )
    for name, table in tables.items():
        for column in table.itercols():
            if column.dtype.kind == "f":
                column.info.format = ".4g"
        write_files({out / f"{name}.ecsv": ecsv_writer(table)})
    try:
        _plot_labels(out, groups_of_stars, stars, catalogues["after"])
        _plot_curves(out, route.workdir)
        if matched is not None and features is not None:
            first = next(iter(catalogues["after"].edges))
            colour = np.asarray(stars[first], float)[matched.stars]
            _plot_latents(out, gap, pairs(features, route.regressor.encoder), first, colour)
    except ImportError as error:
        logger.warning("report: figures are missing: %s", error)
    return Report(domains, reconstruction, labels)


def _of_rows(catalogue: Catalogue, rows: np.ndarray) -> Catalogue:
    """Some rows of a catalogue."""
    pmfs = {key: pmf[rows] for key, pmf in catalogue.pmfs.items()}
    return catalogue._replace(table=catalogue.table[rows], pmfs=pmfs)


def _library_rows(
    route: Route,
    gap: GapSettings,
    members: Mapping[str, list[Member]],
    held: Pool,
    names: list[str],
) -> list[dict[str, Any]]:
    """`errors.library_rows` of the encoders in question."""
    encoder = route.regressor.encoder
    latents = {
        name: encode(members[name], held.pixels.flux, chunk=route.autoencoder.chunk)
        for name in dict.fromkeys((encoder, "adapted"))
    }
    truth = dict(zip(names, np.asarray(held.labels).T, strict=True))
    regressors = load_regressors(route, encoder)
    return library_rows(gap, regressors, latents, truth)


class Matched(NamedTuple):
    """Library spectra at the labels of stars."""

    stars: np.ndarray  # int[M], rows of the survey
    first: Pool  # one library spectrum for each
    second: Pool  # another, with other noise and line spread


def match(
    config: ml_collections.ConfigDict, source: Source, stars: Table, sky: Sky, names: list[str]
) -> Matched | None:
    """Draws the library at the labels of every usable star whose labels are all known and inside the library.

    None, with a warning, where there are fewer such stars than folds of the classifier (a survey without labels).
    """
    settings = record(EnsembleSettings, config.autoencoder, "autoencoder")
    values = np.stack([np.asarray(stars[name], float) for name in names], axis=1)
    cell, place = locate(source.libraries[0], values)
    chosen = np.flatnonzero((cell >= 0) & sky.usable)
    if len(chosen) < config.gap.folds:
        logger.warning(
            "report: no comparison of features: it needs %d stars with all labels inside the library, found %d",
            config.gap.folds,
            len(chosen),
        )
        return None
    pools = [
        pool_at(
            root_key(config.seed, "gap", "match", i),
            source.libraries,
            cell[chosen],
            place[chosen],
            chunk=settings.chunk,
            window=source.window,
            noise=settings.noise,
        )
        for i in range(2)
    ]
    return Matched(chosen, *pools)


class Features(NamedTuple):
    """Latent features float[A, M, F] of matched stars and library spectra."""

    library: np.ndarray  # library spectra, encoder before the fine-tuning
    second: np.ndarray  # the second library spectra, the same encoder
    library_adapted: np.ndarray  # library spectra, fine-tuned encoder
    before: np.ndarray  # stars, encoder before the fine-tuning
    after: np.ndarray  # stars, fine-tuned encoder


def _features(members: Mapping[str, list[Member]], sky: Sky, matched: Matched, *, chunk: int) -> Features:
    before, after = encode_stars((members["library"], members["adapted"]), sky, matched.stars)
    return Features(
        encode(members["library"], matched.first.pixels.flux, chunk=chunk),
        encode(members["library"], matched.second.pixels.flux, chunk=chunk),
        encode(members["adapted"], matched.first.pixels.flux, chunk=chunk),
        before,
        after,
    )


def pairs(features: Features, encoder: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is compared with what: name -> features of stars, features of library spectra.

    "control" are two library spectra of each star's labels, which differ by noise and line spread alone; "after"
    are the features that the estimates rest on; "after, one encoder", where these come from two encoders, sends both
    through the fine-tuned one.

    Args:
      encoder: that the regressors learned from, "library" or "adapted".
    """
    out = {"control": (features.second, features.library), "before": (features.before, features.library)}
    if encoder == "adapted":
        return out | {"after": (features.after, features.library_adapted)}
    return out | {
        "after": (features.after, features.library),
        "after, one encoder": (features.after, features.library_adapted),
    }


def _domain_rows(
    gap: GapSettings,
    compared: Mapping[str, tuple[np.ndarray, np.ndarray]],
    groups: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """One row per comparison for each autoencoder, and for all together by groups of stars.

    Args:
      compared: see `pairs`.
      groups: name -> bool[M], which of the pairs.
    """
    rows = []
    for comparison, (observed, library) in compared.items():
        for i in range(len(observed)):
            row = {"comparison": comparison, "group": "all", "member": str(i)}
            rows.append(row | compare(gap, observed[i], library[i]))
        joined = [np.concatenate(list(x), axis=1) for x in (observed, library)]
        for group, mask in groups.items():
            if np.count_nonzero(mask) < 2 * gap.folds:
                logger.warning("report: %d stars in group %s, too few", np.count_nonzero(mask), group)
                continue
            row = {"comparison": comparison, "group": group, "member": "all"}
            rows.append(row | compare(gap, joined[0][mask], joined[1][mask]))
    return rows


def compare(
    gap: GapSettings,
    observed: Float[np.ndarray, "stars features"],
    library: Float[np.ndarray, "stars features"],
) -> dict[str, float]:
    """All tests of paired features, in units of the library's standard deviations.

    Returns:
      n; auc with auc_low and auc_high; mmd2 and its permutation p-value mmd_p; features (that change at all), ks
      (their median Kolmogorov-Smirnov distance), ks_differ (those with p < 0.05 / features).
    """
    std = library.std(axis=0)
    scale = np.where(std > 0, std, np.where(observed.std(axis=0) > 0, observed.std(axis=0), 1.0))
    x, y = ((z - library.mean(axis=0)) / scale for z in (observed, library))
    width = float(median_distance(jnp.asarray(y[::2]), jnp.asarray(y[1::2])))
    found = classifier_auc(
        x,
        y,
        folds=gap.folds,
        repeats=gap.repeats,
        ridge=gap.ridge,
        resamples=gap.resamples,
        level=gap.level,
        seed=gap.seed,
        paired=True,
    )
    mmd2, p_value = mmd_test(
        x,
        y,
        widths=np.array(WIDTHS) * max(width, 1e-6),
        permutations=gap.permutations,
        seed=gap.seed,
        paired=True,
    )
    tests = feature_tests(x, y)
    live = np.isfinite(tests.statistic)
    differ = np.count_nonzero(tests.p_value[live] < 0.05 / max(1, np.count_nonzero(live)))
    return {
        "n": len(x),
        "auc": found.value,
        "auc_low": found.low,
        "auc_high": found.high,
        "mmd2": mmd2,
        "mmd_p": p_value,
        "features": int(np.count_nonzero(live)),
        "ks": float(np.median(tests.statistic[live])) if live.any() else np.nan,
        "ks_differ": int(differ),
    }


def _plot_labels(out: Path, groups: Section, stars: Table, catalogue: Catalogue) -> None:
    groups_one_to_one(
        out / "one_to_one.png",
        catalogue.table,
        stars,
        {name: within(stars, limits) for name, limits in groups.items()},
        labels=list(catalogue.edges),
        title="autoencoder route: no label of these stars was used",
    )


def _plot_curves(out: Path, workdir: Path) -> None:
    for stage in (AUTOENCODER, ADAPT, REGRESSOR):
        for path in sorted((workdir / stage).glob("*/metrics.jsonl")):
            if records := read_records(path):
                training_curves(out / f"training_{stage}_{path.parent.name}.png", records)


def _plot_latents(
    out: Path,
    gap: GapSettings,
    compared: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label: str,
    colour: Float[np.ndarray, " stars"],
) -> None:
    """Maps of the features; see `pairs` for `compared`."""
    latent_maps(
        out / "latents.png",
        {
            name: tuple(np.concatenate(list(z), axis=1) for z in compared[name])
            for name in ("before", "after")
        },
        colour=colour,
        colour_name=label,
        perplexity=gap.perplexity,
        seed=gap.seed,
    )
