"""The report of a catalogue: what is known of its stars is gathered, and written as one HTML page."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Table

from remap import io
from remap.config import ConfigError, Section, record
from remap.io.columns import guess_format
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import Catalogue, describe, read_catalogue
from remap.predict.explain import ArmExplanation, explain, library_spectra
from remap.predict.predictor import Predictor
from remap.preprocess.observed import Observed
from remap.report.html import ArmCard, KnownLabels, LineMark, Neighbour, ReportContent, StarCard, write_report
from remap.report.html.figures import by_severity, in_words
from remap.report.html.svg import number
from remap.spectra import air_to_vacuum
from remap.stages.neighbours import catalogue_neighbours
from remap.store.stars import labelled, read_split, readable_stars, split_settings, within
from remap.store.workdir import load_survey, read_config
from remap.synth.atoms import ELEMENTS, IONISATION, solar_abundances
from remap.synth.lines import load_lines

logger = logging.getLogger(__name__)

FLAGGED = 2 / 3  # share of the cards that flagged stars may have where others wait
SAME = 0.01  # relative difference of signal-to-noise ratios within which a row is a spectrum of the survey
THETA = 5040.0 / 5500.0  # 1/eV, of a star of 5500 K
STRONG = (  # air [Å] and name of lines that people look for, strongest wherever they occur
    (3933.66, "Ca II K"), (3968.47, "Ca II H"), (4045.81, "Fe I"), (4077.71, "Sr II"), (4101.73, "Hδ"),
    (4226.73, "Ca I"), (4271.76, "Fe I"), (4307.90, "CH, Fe I"), (4340.46, "Hγ"), (4383.54, "Fe I"),
    (4554.03, "Ba II"), (4861.32, "Hβ"), (5167.32, "Mg b"), (5172.68, "Mg b"), (5183.60, "Mg b"),
    (5889.95, "Na D"), (5895.92, "Na D"), (6122.22, "Ca I"), (6162.17, "Ca I"), (6141.71, "Ba II"),
    (6439.08, "Ca I"), (6496.90, "Ba II"), (6562.79, "Hα"), (6707.80, "Li I"), (7698.96, "K I"),
    (7771.94, "O I"), (8183.26, "Na I"), (8194.82, "Na I"), (8498.02, "Ca II"), (8542.09, "Ca II"),
    (8662.14, "Ca II"), (8806.76, "Mg I"), (15748.99, "Mg I"), (15765.84, "Mg I"), (15888.41, "Si I"),
    (16109.31, "Br 13"), (16407.19, "Br 12"), (16718.96, "Al I"), (16750.56, "Al I"), (16806.52, "Br 11"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Of the report (config section `report`).

    Attributes:
      cards: stars that have a card at most; all of them in smaller catalogues.
      lines: labelled in the spectrum of an arm at most.

    Raises:
      ConfigError: a negative number.
    """

    cards: int = 100
    lines: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ConfigError(f"{field.name} must be at least 0, found {getattr(self, field.name)}")


class StarSpectra(NamedTuple):
    """The spectra of a catalogue's rows, before normalisation."""

    arms: Mapping[str, ArmInputs]  # of P spectra
    rows: np.ndarray  # int[S], which of them each row of the catalogue is, -1 = none of them


def report_settings(config: Section) -> ReportSettings:
    """The settings of the report, from a whole config; the defaults where it is of before there were any."""
    return record(ReportSettings, config.get("report", {}), "report")


def make_report(
    path: str | Path,
    catalogue: Catalogue,
    *,
    title: str = "",
    settings: ReportSettings | None = None,
    predictor: Predictor | None = None,
    spectra: StarSpectra | None = None,
    workdir: Path | None = None,
    known: KnownLabels | None = None,
    neighbours: Mapping[int, Sequence[Neighbour]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the report of a catalogue.

    Args:
      path: ends in .html.
      title: "" = one that says how many stars there are.
      settings: None = the defaults.
      predictor: the networks that made the catalogue; None = cards have no spectra.
      spectra: of the catalogue's rows; None = the same.
      workdir: of the networks, whose library is shown beside the stars; None = the predictor's templates.
      known: labels known from elsewhere.
      neighbours: row -> its neighbours among the references, nearest first; None = those that the catalogue names.

    Raises:
      ConfigError: the name does not end in .html, or Jinja2 is missing.
      FileExistsError: the file exists, and overwrite is False.
    """
    settings = settings or ReportSettings()
    table, labels = catalogue.table, list(catalogue.edges)
    flags = np.asarray(table["flags"]) if "flags" in table.colnames else np.zeros(len(table), np.int32)
    meanings = {int(bit): text for bit, text in catalogue.meta.get("flags", describe()).items()}
    rows = choose_cards(flags, meanings, np.asarray(table[labels[0]], float), settings.cards)
    shown = {row: StarCard(row=row, pmfs=_pmfs(catalogue, row)) for row in rows}
    if neighbours is None:
        neighbours = catalogue_neighbours(catalogue, rows, predictor)
    if neighbours:
        shown = {r: dataclasses.replace(c, neighbours=neighbours.get(r, ())) for r, c in shown.items()}
    lines: list[LineMark] = []
    if predictor is not None:
        lines = labelled_lines(predictor, settings.lines)
        if spectra is not None:
            shown |= _with_spectra(catalogue, shown, predictor, spectra, workdir)
    content = ReportContent(
        title=title or f"Catalogue of {len(table):,} stars",
        table=table,
        labels=labels,
        edges=catalogue.edges,
        flags=meanings,
        cards=list(shown.values()),
        known=known,
        lines=lines,
        medium=predictor.preprocessing.medium if predictor is not None else "",
        provenance={str(name): value for name, value in catalogue.meta.items() if name != "flags"},
    )
    return write_report(path, content, overwrite=overwrite)


def choose_cards(flags: np.ndarray, meanings: Mapping[int, str], values: np.ndarray, limit: int) -> list[int]:
    """Rows that get a card: all, or flagged ones, some of every flag, and a sample of the others.

    Args:
      flags: int[S].
      meanings: bit -> "NAME: meaning".
      values: float[S], over which the sample is spread.

    Returns:
      At most `limit` rows, increasing.
    """
    count = len(flags)
    if count <= limit:
        return list(range(count))
    clean = np.flatnonzero(flags == 0)
    room = limit - min(len(clean), limit - int(limit * FLAGGED))
    # In turns, so that a common flag does not crowd out a rare one; the most severe flags come first.
    queues = [np.flatnonzero(flags & bit).tolist() for bit in by_severity(meanings)]
    chosen: dict[int, None] = {}
    while any(queues) and len(chosen) < room:
        for queue in queues:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < room:
                chosen[queue.pop(0)] = None
    ordered = clean[np.argsort(values[clean], kind="stable")]
    left = min(limit - len(chosen), len(ordered))
    if left:
        chosen |= dict.fromkeys(ordered[np.linspace(0, len(ordered) - 1, left).round().astype(int)].tolist())
    return sorted(chosen)


def observed_spectra(catalogue: Catalogue, observed: Observed, *, in_order: bool = False) -> StarSpectra:
    """The spectra of a catalogue's rows among those that were read.

    Args:
      observed: after joining, if the catalogue was made of joined spectra.
      in_order: row i of both is the same; otherwise they are found by their names, where these tell them apart.
    """
    arms = {arm: ArmInputs(on.flux, on.valid, on.snr) for arm, on in observed.arms.items()}
    if in_order:
        return StarSpectra(arms, np.arange(len(observed)))
    return StarSpectra(arms, _rows_by_name(observed.names, list(map(str, catalogue.table["file"]))))


def survey_spectra(workdir: Path, catalogue: Catalogue, arms: Sequence[str]) -> StarSpectra | None:
    """The prepared spectra of the working folder's survey that the rows of a catalogue are, or None without any."""
    found = _survey(workdir, catalogue, arms)
    return None if found is None or not np.any(found[1].rows >= 0) else found[1]


def known_labels(
    workdir: Path, catalogue: Catalogue, arms: Sequence[str], *, stage: str = "finetune"
) -> KnownLabels | None:
    """Labels of the working folder's survey for the stars of a catalogue that are spectra of it.

    Only stars that the networks did not train on are compared: as `launch.evaluate` has predicted them, each by the
    networks of its own fold, where it has; else those that belong to no fold.

    Args:
      stage: of the networks.

    Returns:
      None where no star can be compared.
    """
    found = _survey(workdir, catalogue, arms)
    if found is None:
        return None
    stars, spectra = found
    free, tested = _sides(workdir, stars, arms, stage)
    rows = np.flatnonzero(spectra.rows >= 0)
    of_star, table = spectra.rows[rows], catalogue.table
    note = "Stars of the networks' own survey that belong to none of their folds."
    allowed = free
    path = workdir / "evaluate" / f"{stage}.fits"
    if path.is_file():
        held = read_catalogue(path)
        same = held.meta.get("checkpoint_step") == catalogue.meta.get("checkpoint_step")
        # It has the stars with known labels: all others have nothing to be compared with.
        names = [list(map(str, each["file"])) for each in (stars, held.table)]
        known = labelled(stars, [k for k in catalogue.edges if k in stars.colnames])
        place = _rows_by_name(*reversed(names))
        if same and set(names[1]) <= set(names[0]) and np.all(place[known] >= 0):
            of_star = of_star[place[of_star] >= 0]
            table, rows, allowed = held.table, place[of_star], free | tested
            note = (
                "Stars of the networks' own survey, each predicted by networks that did not train on it "
                f"({path.name} of launch.evaluate), so that single values may differ from those of the table."
            )
    keep = allowed[of_star]
    if not keep.any():
        return None
    rows, of_star = rows[keep], of_star[keep]
    limits = read_config(workdir)["evaluate"]["groups"]
    groups = np.full(len(stars), "other", dtype=object)
    for name, each in limits.items():
        groups[within(stars, each)] = name
    order = np.argsort([[*limits, "other"].index(name) for name in groups[of_star]], kind="stable")
    rows, of_star = rows[order], of_star[order]
    known = {k: np.asarray(stars[k], float)[of_star] for k in catalogue.edges if k in stars.colnames}
    return _known(known, table, rows, groups[of_star].tolist(), note)


def known_from_table(path: str | Path, catalogue: Catalogue, columns: Mapping[str, str]) -> KnownLabels:
    """Labels of a table (columns `file` and those named) for the stars of a catalogue.

    Args:
      columns: label -> column.

    Raises:
      ConfigError: a label that the catalogue has not.
      SpectrumError: the table cannot be read, or none of its rows is one of the catalogue.
    """
    if extra := sorted(set(columns) - set(catalogue.edges)):
        raise ConfigError(f"{path}: the catalogue has the labels {list(catalogue.edges)}, not {extra}")
    source = {"format": guess_format(Path(path)), "columns": dict(columns), "file_column": "file"}
    labels = io.read_labels(path, source={**source, "repeat_stars": True})
    of_row = labels.rows_of([Path(str(f)) for f in catalogue.table["file"]])
    rows = np.flatnonzero(of_row >= 0)
    known = {k: v[of_row[rows]] for k, v in labels.values.items()}
    note = f"Labels of {Path(path).name}; whether the networks trained on these stars is not known here."
    return _known(known, catalogue.table, rows, [], note)


def labelled_lines(predictor: Predictor, count: int) -> list[LineMark]:
    """The best-known and strongest lines of every arm, so far apart that their names can be read.

    Args:
      count: per arm, at most.
    """
    air, names = _all_lines()
    wave = air if predictor.preprocessing.medium == "air" else air_to_vacuum(air)
    out = []
    for arm in predictor.preprocessing.arms:
        grid = predictor.preprocessing.wave(arm)
        apart = (grid[-1] - grid[0]) / max(4 * count, 1)
        taken: list[int] = []
        for i in np.flatnonzero((wave > grid[0]) & (wave < grid[-1])):
            if len(taken) < count and all(abs(wave[i] - wave[j]) > apart for j in taken):
                taken.append(int(i))
        out += [LineMark(wave=float(wave[i]), name=names[i]) for i in sorted(taken, key=lambda j: wave[j])]
    return out


def _all_lines() -> tuple[np.ndarray, list[str]]:
    """Air wavelengths and names, in the order in which they are to be labelled."""
    lines = load_lines()
    potential, stage = IONISATION[lines.element, 0], lines.stage
    # Saha at 5040 K and an electron pressure of 16 dyn/cm²; good enough to sort names by.
    ionised = 1 / (1 + 10 ** (potential - 7.9))
    share = np.where(stage == 1, 1 - ionised, ionised)
    strength = np.log10(solar_abundances()[lines.element] * share) + np.asarray(lines.log_gf)
    order = np.argsort(-(strength - THETA * lines.excitation))
    order = order[np.asarray(lines.element)[order] != ELEMENTS.index("H")]  # those are in STRONG
    names = [f"{ELEMENTS[lines.element[i]]} {'I' * int(stage[i])}" for i in order]
    return np.r_[[w for w, _ in STRONG], lines.wave[order]], [n for _, n in STRONG] + names


def _with_spectra(
    catalogue: Catalogue,
    shown: Mapping[int, StarCard],
    predictor: Predictor,
    spectra: StarSpectra,
    workdir: Path | None,
) -> dict[int, StarCard]:
    """The cards of stars whose spectra are at hand, with these."""
    rows = [row for row in shown if spectra.rows[row] >= 0]
    if not rows:
        return {}
    which = spectra.rows[rows]
    inputs = {a: ArmInputs(x.flux[which], x.valid[which], x.snr[which]) for a, x in spectra.arms.items()}
    labels = np.stack([np.asarray(catalogue.table[k], float)[rows] for k in predictor.labels], axis=1)
    library = library_spectra(workdir, predictor.preprocessing, predictor.templates)
    found = explain(predictor.runner, inputs, labels=labels, library=library)
    out = {}
    for i, row in enumerate(rows):
        arms = [
            _arm(predictor, name, arm, i)
            for name, arm in found.arms.items()
            if np.isfinite(arm.flux[i]).any()
        ]
        words = ""
        if found.chosen[i] >= 0:
            values = library.labels[found.chosen[i]]
            units = {b.name: b.unit for b in predictor.preprocessing.labels}
            words = ", ".join(
                f"{in_words(k)} {number(float(np.round(v, 3)))} {units[k]}".strip()
                for k, v in zip(predictor.labels, values, strict=True)
            )
        out[row] = dataclasses.replace(shown[row], arms=arms, library=words, library_rms=float(found.rms[i]))
    return out


def _arm(predictor: Predictor, name: str, arm: ArmExplanation, i: int) -> ArmCard:
    used = np.isfinite(arm.normalized[i]).any()
    return ArmCard(
        name=name,
        wave=arm.wave,
        flux=arm.flux[i],
        continuum=arm.continuum[i],
        normalized=arm.normalized[i],
        library=arm.library[i] if np.isfinite(arm.library[i]).any() else None,
        saliency=dict(zip(predictor.labels, arm.saliency[:, i], strict=True)) if used else {},
    )


def _pmfs(catalogue: Catalogue, row: int) -> dict[str, dict[str, np.ndarray]]:
    out: dict[str, dict[str, np.ndarray]] = {}
    for key, pmf in catalogue.pmfs.items():
        label, whose = (key, "") if isinstance(key, str) else key
        out.setdefault(label, {})[whose] = np.asarray(pmf[row])
    return out


def _known(
    known: Mapping[str, np.ndarray], table: Table, rows: np.ndarray, groups: Sequence[str], note: str
) -> KnownLabels:
    predicted, p16, p84 = (
        {k: np.asarray(table[k + suffix], float)[rows] for k in known} for suffix in ("", "_p16", "_p84")
    )
    return KnownLabels(known=known, predicted=predicted, p16=p16, p84=p84, groups=groups, note=note)


def _survey(workdir: Path, catalogue: Catalogue, arms: Sequence[str]) -> tuple[Table, StarSpectra] | None:
    """The folder's survey and which of its spectra the rows are; None where the folder keeps none.

    Another survey may have files of the same name, so that the signal-to-noise ratio has to be the same, too.
    """
    data = workdir / "data"
    if not (data / "stars.ecsv").is_file() or not all((data / f"survey_{a}.npz").is_file() for a in arms):
        return None
    stars, inputs = readable_stars(workdir), {}
    for arm in arms:
        survey, snr = load_survey(workdir, arm)
        inputs[arm] = ArmInputs(survey.flux, survey.valid, snr)
    rows = _rows_by_name(list(map(str, stars["file"])), list(map(str, catalogue.table["file"])))
    if "snr" in catalogue.table.colnames:
        used = [str(a).split(",") for a in catalogue.table["arms"]]
        own = np.full(len(rows), np.nan)
        for i in np.flatnonzero(rows >= 0):
            values = [inputs[a].snr[rows[i]] for a in arms if a in used[i]]
            own[i] = np.nanmean(values) if np.isfinite(values).any() else np.nan
        snr = np.asarray(catalogue.table["snr"], float)
        rows = np.where(np.isclose(own, snr, rtol=SAME, equal_nan=True), rows, -1)
    return stars, StarSpectra(inputs, rows)


def _sides(workdir: Path, stars: Table, arms: Sequence[str], stage: str) -> tuple[np.ndarray, np.ndarray]:
    """bool[S] twice: stars that no network of the stage has trained on, and those that a fold tests on."""
    if stage != "finetune":
        return np.ones(len(stars), bool), np.zeros(len(stars), bool)
    config = read_config(workdir)
    ids = np.asarray(stars["star_id"])
    free, tested = np.ones(len(stars), bool), np.zeros(len(stars), bool)
    for fold in config["split"]["run"]:
        part = read_split(workdir, stars, split_settings(config), arms, fold)
        # By star: a spectrum that was not selected may be another one of a star that was.
        free &= ~np.isin(ids, ids[part != "other"])
        tested |= np.isin(ids, ids[part == "test"])
    return free, tested


def _rows_by_name(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """int[W]: which of the names each wanted one is; -1 where it is none of them or not told apart."""
    index: dict[str, int] = {}
    for i, name in enumerate(names):
        index[name] = -1 if name in index else i
    return np.array([index.get(name, -1) for name in wanted], np.int64)
