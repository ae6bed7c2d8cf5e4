"""The report: predictions for stars with known labels, against those labels (paper §6, table 1, fig. 4)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from astropy.table import Table
from scipy.special import ndtri

from remap.config import ConfigError, Section, record
from remap.pmf.bootstrap import star_scatter
from remap.pmf.metrics import attainable_slope, coverage, crps, nll, pit, residual_table, uniform_distance
from remap.predict.catalogue import Catalogue
from remap.predict.held_out import SurveyPrediction, predict_survey
from remap.report.plots import groups_one_to_one, training_curves
from remap.report.reliability import CalibrationFound, calibration_curves
from remap.report.tables import by_snr, table1
from remap.store.atomic import check_writable, write_files, write_text
from remap.store.records import read_records
from remap.store.stars import labelled_rows, readable_stars, within
from remap.store.tables import ecsv_writer

logger = logging.getLogger(__name__)

# Columns of the summary that a script prints; summary.ecsv has them all.
BRIEF = (
    "stage",
    "group",
    "label",
    "n",
    "bias",
    "std",
    "robust",
    "prediction_slope",
    "scatter_star",
    "cover68_star",
    "cover95_star",
    "crps",
)
STAGES = ("pretrain", "align", "finetune")
LEVELS = (0.68, 0.95)  # of the intervals in the summary
CURVE_LEVELS = tuple(i / 20 for i in range(1, 20))  # of the reliability curves
STAR_SCATTER = ("scatter_star", "scatter_star_low", "scatter_star_high")
PIT_BINS = 10
BAND = 0.95  # probability of the bands of chance in the figures, and of the intervals of `scatter_star`
RESAMPLES = 500  # of the stars, for those


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Of the report (config section `evaluate`).

    Attributes:
      groups: limits of the known labels of each group of stars, both ends included.
      snr_edges: between the bins of by_snr.ecsv.
      quoted: per label, a bias and a scatter to be shown beside ours in table1.md.
      quoted_source: where they are from.
    """

    groups: Section = dataclasses.field(
        default_factory=lambda: {
            "dwarfs": {"teff": (4500.0, 6500.0), "logg": (3.5, 5.5), "feh": (-1.0, 1.0)},
            "giants": {"logg": (1.0, 3.4999)},
        }
    )
    snr_edges: Sequence[float] = (30.0, 60.0, 100.0)
    quoted: Section = dataclasses.field(
        default_factory=lambda: {"teff": (-10.0, 75.0), "logg": (0.02, 0.12), "feh": (-0.01, 0.08)}
    )
    quoted_source: str = "the paper's table 1, 30 MARVELS calibration stars"


def evaluate(config: ml_collections.ConfigDict, workdir: str | Path, *, references: bool = True) -> Table:
    """Predicts the survey's labelled stars and writes tables and, where matplotlib is there, plots.

    Stars without any known label have no part, and their spectra are not looked at: `launch.predict` is for them.

    Every star is predicted by networks that did not train on it: a selected star by the network of the fold
    in which it is a test star, the others (giants, say) by the mean over all folds. Stars of folds that were
    not run are left out. (The stage align, if there is one, and `finetune.unlabelled` take spectra of any star,
    without labels.)

    Writes into evaluate/: summary.ecsv, by_snr.ecsv (`tables.by_snr`), table1.md (`tables.table1`), STAGE.fits
    (catalogues of the labelled stars), one_to_one_STAGE.png, calibration_STAGE.png and training_*.png.

    Args:
      references: compare the stars of the fine-tuned networks with what `launch.references` has kept, where it has:
        neighbours, and the flag FAR. A star is compared in the networks that predict it, and never with a spectrum of
        its own (`remap.predict.fold_references`). The summary does not depend on it.

    Returns:
      The summary: one row per stage ("uncalibrated": fine-tuned, without `calibrate`; "validation": the same
      for the validation stars of fine-tuning, to choose settings by), group and label: n, bias, median, std,
      robust scatter, slope of the residuals, slope of the predictions (1 more) with the standard error of both
      and the slope that exact predictions would have (`metrics.attainable_slope`), coverage of the 68 % and
      95 % intervals, mean negative log likelihood and CRPS, and the distance of the PIT from uniform
      (`metrics.uniform_distance`). Columns with "star" in their names take the errors of the known labels into
      account and are those of the stars' own values: see `summarize`.

    Raises:
      FileNotFoundError: no stage has been run.
      ConfigError, ValueError: no star has a label; and what `predict_survey` refuses, such as a config that
        contradicts the networks.
    """
    workdir = Path(workdir)
    settings = record(EvaluateSettings, config.evaluate, "evaluate")
    stars = readable_stars(workdir)
    out = workdir / "evaluate"
    check_writable(out / "summary.ecsv")
    known = labelled_rows(workdir, stars)
    if not len(known):
        raise ConfigError(f"{workdir}: expected stars with a known label, found none among {len(stars)}")
    rows, snr_rows, inputs = [], [], None
    for stage in STAGES if config.align.kind != "none" else ("pretrain", "finetune"):
        try:
            survey = predict_survey(
                config, workdir, stars, stage, inputs=inputs, references=references, rows=known
            )
        except FileNotFoundError as error:
            logger.warning("evaluate: no %s stage: %s", stage, error)
            continue
        inputs = survey.inputs
        found, found_by_snr = _report_stage(
            settings, out, survey, stage, validated=config.split.validation > 0
        )
        rows, snr_rows = rows + found, snr_rows + found_by_snr
    if not rows:
        raise FileNotFoundError(f"{workdir}: expected a finished pretrain or finetune stage, found neither")
    table, snr_table = Table(rows=rows), Table(rows=snr_rows)
    for each in (table, snr_table):
        for column in each.colnames[each.colnames.index("n") + 1 :]:
            each[column].info.format = ".3f"
    write_files({out / "summary.ecsv": ecsv_writer(table)})
    write_files({out / "by_snr.ecsv": ecsv_writer(snr_table)})
    text = table1(
        [r for r in rows if r["stage"] in STAGES],
        units={name: config.labels[name].unit for name in config.label_names},
        quoted=settings.quoted,
        source=settings.quoted_source,
    )
    write_text(out / "table1.md", text)
    try:
        _plot_training(workdir, out)
    except ImportError as error:
        logger.warning("evaluate: no training curves: %s", error)
    return table


def _report_stage(
    settings: EvaluateSettings, out: Path, survey: SurveyPrediction, stage: str, *, validated: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Writes the catalogue and the figures of a stage; its rows of the summary and of the table by SNR.

    Args:
      validated: stars were kept for validation in fine-tuning, which has rows of its own for them.
    """
    stars, groups = survey.stars, settings.groups
    found = survey.held_out()
    catalogue, tested = found.catalogue(stars), found.tested
    catalogue.write(out / f"{stage}.fits", overwrite=True)
    catalogues = {stage: catalogue}
    survey = survey._replace(looks={})  # of the catalogues that are not written
    if found.predictor.calibration is not None:
        catalogues["uncalibrated"] = survey.held_out(calibrated=False).catalogue(stars)
    rows = []
    for name, each in catalogues.items():
        rows += summarize(each, stars, tested, groups, name)
    if stage == "finetune" and validated:
        held = survey.held_out("val", calibrated=False)
        selected = {g: v for g, v in groups.items() if (held.tested & within(stars, v)).any()}
        rows += summarize(held.catalogue(stars), stars, held.tested, selected, "validation")
    try:
        _plot(out, stage, catalogue, stars, tested, groups)
        _plot_calibration(out, stage, catalogues, stars, tested, groups)
    except ImportError as error:
        logger.warning("evaluate: no plot: %s", error)
    return rows, _by_snr(catalogue, stars, tested, groups, settings.snr_edges, stage)


def brief(summary: Table) -> str:
    """The columns of the summary that fit on a screen, as text."""
    return "\n".join(summary[list(BRIEF)].pformat(max_lines=-1, max_width=-1))


def summarize(
    catalogue: Catalogue,
    stars: Table,
    tested: np.ndarray,
    groups: Section,
    stage: str,
) -> list[dict[str, Any]]:
    """Rows of the report, one per group and label.

    Known labels have errors. What is compared with the labels themselves (`robust`, `cover68`, `nll`, ...) holds
    these errors, too; the columns that follow are about the stars' own values:

    - `scatter_star`: the robust scatter without what the labels' errors add, from `scatter_star_low` to
      `scatter_star_high` by bootstrap over the stars (`remap.pmf.bootstrap.star_scatter`);
    - `cover68_labels`, `cover95_labels`: how many labels lie within that part of their own errors about the
      predictions: what PMFs without any width would give for the columns that follow, and so the least that can be;
    - `cover68_star`, `cover95_star`, `nll_star`, `pit_ks_star`: of the labels under PMF ⊗ label error
      (`remap.pmf.observed`). 0.68 and 0.95 are right for PMFs that are those of the stars, but for labels that
      are wrong by more than their errors.

    Args:
      catalogue: of S spectra.
      stars: S rows, with columns LABEL and LABEL_err.
      tested: bool[S], the spectra that may be reported.
      groups: name -> limits of the known labels.
      stage: what the rows are called.
    """
    rows = []
    for group, limits in groups.items():
        member = tested & within(stars, limits)
        for label, edges in catalogue.edges.items():
            truth = np.asarray(stars[label], float)[member]
            predicted = np.asarray(catalogue.table[label], float)[member]
            pmf = catalogue.pmfs[label][member]
            errors = np.where(
                np.isfinite(predicted), np.asarray(stars[f"{label}_err"], float)[member], np.nan
            )
            held, star = (coverage(pmf, edges, truth, LEVELS, e) for e in (None, errors))
            scatter = star_scatter(
                predicted - truth,
                errors,
                stars=np.asarray(stars["star_id"]).astype(str)[member],
                resamples=RESAMPLES,
                level=BAND,
                seed=0,
            )
            rows.append(
                {"stage": stage, "group": group, "label": label}
                | residual_table(predicted, truth)
                | {"attainable_slope": attainable_slope(truth, errors)}
                | {f"cover{round(100 * level)}": c for level, c in zip(LEVELS, held, strict=True)}
                | {"nll": _mean(nll(pmf, edges, truth)), "crps": _mean(crps(pmf, edges, truth))}
                | {"pit_ks": uniform_distance(pit(pmf, edges, truth))}
                | dict(zip(STAR_SCATTER, scatter, strict=True))
                | {
                    f"cover{round(100 * level)}_labels": _mean(_within(predicted - truth, errors, level))
                    for level in LEVELS
                }
                | {f"cover{round(100 * level)}_star": c for level, c in zip(LEVELS, star, strict=True)}
                | {"nll_star": _mean(nll(pmf, edges, truth, errors))}
                | {"pit_ks_star": uniform_distance(pit(pmf, edges, truth, errors))}
            )
    return rows


def _by_snr(
    catalogue: Catalogue,
    stars: Table,
    tested: np.ndarray,
    groups: Section,
    edges: Sequence[float],
    stage: str,
) -> list[dict[str, Any]]:
    """Rows of `tables.by_snr`, one per group, label and bin."""
    rows = []
    for group, limits in groups.items():
        member = tested & within(stars, limits)
        for label in catalogue.edges:
            columns = catalogue.table[label], stars[label], stars[f"{label}_err"], catalogue.table["snr"]
            found = by_snr(*(np.asarray(c, float)[member] for c in columns), edges)
            rows += [{"stage": stage, "group": group, "label": label} | row for row in found]
    return rows


def _within(residual: np.ndarray, errors: np.ndarray, level: float) -> np.ndarray:
    """float[S]: 1 where a residual lies in the central interval of a normal error; NaN where one is not known."""
    reach = ndtri(0.5 + level / 2) * errors
    return np.where(np.isfinite(residual) & np.isfinite(errors), np.abs(residual) <= reach, np.nan)


def _mean(values: np.ndarray) -> float:
    """Mean over the stars that have a PMF and a label; infinite where a PMF excludes the label."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _plot(
    out: Path, stage: str, catalogue: Catalogue, stars: Table, tested: np.ndarray, groups: Section
) -> None:
    member = {g: tested & within(stars, limits) for g, limits in groups.items()}
    groups_one_to_one(
        out / f"one_to_one_{stage}.png",
        catalogue.table,
        stars,
        member,
        labels=list(catalogue.edges),
        title=f"{stage}: stars that the networks did not train on",
    )


def _plot_calibration(
    out: Path,
    stage: str,
    catalogues: Mapping[str, Catalogue],
    stars: Table,
    tested: np.ndarray,
    groups: Section,
) -> None:
    """One figure, of the labels under PMF ⊗ label error; with a calibration, PMFs before it beside those after it."""
    names = {stage: "calibrated"} if len(catalogues) > 1 else {}
    found: dict[str, dict[str, dict[str, CalibrationFound]]] = {}
    for group, limits in groups.items():
        member = tested & within(stars, limits)
        for label, edges in catalogues[stage].edges.items():
            truth, errors = (np.asarray(stars[c], float)[member] for c in (label, f"{label}_err"))
            found.setdefault(group, {})[label] = {
                names.get(name, name): CalibrationFound(
                    pit(c.pmfs[label][member], edges, truth, errors),
                    coverage(c.pmfs[label][member], edges, truth, CURVE_LEVELS, errors),
                )
                for name, c in catalogues.items()
            }
    calibration_curves(
        out / f"calibration_{stage}.png",
        found,
        CURVE_LEVELS,
        bins=PIT_BINS,
        confidence=BAND,
        title=f"{stage}: labels under PMF and label error, of stars that the networks did not train on (how many)",
    )


def _plot_training(workdir: Path, out: Path) -> None:
    for path in sorted(workdir.glob("*/*/metrics.jsonl")) + sorted(workdir.glob("*/*/*/metrics.jsonl")):
        records = read_records(path)
        if records:
            name = "_".join(path.relative_to(workdir).parts[:-1])
            training_curves(out / f"training_{name}.png", records)
