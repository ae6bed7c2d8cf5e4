"""From a working folder to a network that can be handed on: its files, and the card that says what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from remap._version import __version__
from remap.config import ConfigError
from remap.predict import release as released
from remap.predict.arms import ArmInputs
from remap.predict.ensemble import averaged
from remap.predict.loading import load
from remap.predict.predictor import Predictor
from remap.stages.finetune import evenly
from remap.store.atomic import check_writable
from remap.store.stars import readable_stars, within
from remap.store.workdir import load_survey

COLUMNS = ("group", "label", "n", "bias", "robust", "scatter_star", "cover68_star", "cover95_star", "crps")
ALIKE = 0.3  # widths: an average of weights may move the median of one spectrum in twenty by so much
COMPARED = 20_000  # spectra at most, by which an average is judged


def release(
    workdir: str | Path, output: str | Path, *, name: str, about: str, average: bool = False
) -> dict[str, int]:
    """Writes the fine-tuned networks of a working folder as a released network (`remap.predict.release`).

    Args:
      workdir: in which finetune, calibrate and evaluate have run.
      output: folder for its files; made if it is not there.
      name: of the network.
      about: first part of the card, Markdown: a heading, a sentence that says what it is, its scale, what to cite.
        What was trained, the range and the results on stars kept aside are added.
      average: write one network per arm, whose weights are the mean over the folds
        (`remap.predict.ensemble.averaged`). The card says by how much its medians differ.

    Returns:
      File -> bytes.

    Raises:
      ConfigError: networks without calibration, or without a report on stars that they never saw; an average that
        says something else than the networks do.
    """
    workdir, output = Path(workdir), Path(output)
    check_writable(output / released.RECORD)
    predictor = load(workdir).without_expert()
    if predictor.calibration is None:
        raise ConfigError(
            f"{workdir}: expected calibrated networks, found no calibration; run launch.calibrate"
        )
    path = workdir / "evaluate" / "summary.ecsv"
    if not path.is_file():
        raise ConfigError(
            f"{workdir}: expected a report on stars kept aside, found none; run launch.evaluate"
        )
    summary = Table.read(path, format="ascii.ecsv")
    told, summary = _stars(workdir, predictor), summary[summary["stage"] == "finetune"]
    difference = None
    if average:
        one = dataclasses.replace(
            predictor, networks={arm: averaged(network) for arm, network in predictor.networks.items()}
        )
        difference = _differences(predictor, one, workdir)
        for label, values in difference.items():
            if not (found := float(np.percentile(np.abs(values), 95))) <= ALIKE:
                raise ConfigError(
                    f"{name}: the average of the weights moves {label} of one spectrum in twenty by more than "
                    f"{found:.2f} widths, expected up to {ALIKE:g}: keep all networks"
                )
        predictor = one
    card = make_card(about, predictor, summary, told, difference=difference)
    return released.release(predictor, output, name=name, card=card)


def _differences(predictor: Predictor, other: Predictor, workdir: Path) -> dict[str, np.ndarray]:
    """Label -> float[S]: by how many widths medians differ for the survey's spectra, both uncalibrated.

    Of a large survey `COMPARED` spectra, evenly spread, are enough.
    """
    ours, theirs = {}, {}
    for arm in predictor.networks:
        survey, snr = load_survey(workdir, arm)
        some = evenly(np.arange(len(snr)), COMPARED)
        inputs = ArmInputs(survey.flux[some], survey.valid[some], np.asarray(snr, float)[some])
        for which, found in ((predictor, ours), (other, theirs)):
            found[arm] = dataclasses.replace(which, known=None).predict_arm(arm, inputs)
    names = [str(i) for i in some]
    first, second = (
        dataclasses.replace(which, known=None, calibration=None).combine(found, names).table
        for which, found in ((predictor, ours), (other, theirs))
    )
    out = {}
    for label in predictor.labels:
        width = np.asarray(first[f"{label}_p84"] - first[f"{label}_p16"], float) / 2
        moved = np.asarray(second[label] - first[label], float) / width
        out[label] = moved[np.isfinite(moved)]
    return out


def make_card(
    about: str,
    predictor: Predictor,
    summary: Table,
    stars: Mapping[str, int],
    *,
    difference: Mapping[str, np.ndarray] | None = None,
) -> str:
    """The whole card: `about`, then what the networks themselves, the report and the survey say.

    Args:
      about: see `release`.
      predictor: the networks.
      summary: rows of evaluate/summary.ecsv about stars that the networks never saw.
      stars: name -> how many, of the survey.
      difference: label -> by how many widths what an average of the weights says differs from what the networks of
        all folds say; None = they are all there.
    """
    config, inputs = predictor.config, predictor.preprocessing
    arms = "; ".join(
        f"{arm}: {inputs.wave(arm)[0]:.1f} to {inputs.wave(arm)[-1]:.1f} Å" for arm in predictor.networks
    )
    spreads = ", ".join(f"{value:g}" for value in config["lsf"]["values"])
    bins = "; ".join(
        f"{b.name} {b.edges[0]:g} to {b.edges[-1]:g} {b.unit} in {b.bins} bins" for b in inputs.labels
    )
    select = "; ".join(
        f"{label} {low:g} to {high:g}" for label, (low, high) in config["finetune"]["select"].items()
    )
    members = {arm: len(network.members) for arm, network in predictor.networks.items()}
    kind = "one per fold of the stars"
    if difference is not None:
        apart = ", ".join(
            f"{label} {np.median(np.abs(v)):.2f} ({np.percentile(np.abs(v), 95):.2f})"
            for label, v in difference.items()
        )
        kind = (
            "the average of the weights over the folds of the stars. Medians of the survey's spectra differ from "
            f"those of all folds' networks by so many widths (95 % by less than): {apart}"
        )
    facts = [
        f"Config `{config['name']}`, seed {config['seed']}, deep-REMAP {__version__}.",
        f"Arms (wavelengths in {inputs.medium}): {arms}. Line spreads ({config['lsf']['kind']}): {spreads}.",
        f"Bins: {bins}.",
        f"Fine-tuned on stars with {select}: {stars['labelled']} spectra of {stars['different']} stars.",
        f"Networks: {', '.join(f'{n} of arm {arm}' for arm, n in members.items())}, {kind}.",
    ]
    lines = [about.strip(), "", "## Training", "", *(f"- {fact}" for fact in facts), ""]
    lines += ["## Stars kept aside", "", *_who_saw_whom(predictor, average=difference is not None), ""]
    lines += [
        "`robust`: 1.48 times the median absolute residual about the median; `scatter_star`: the same without",
        "the error of the known label; `cover68_star`, `cover95_star`: how many lie in the intervals of PMF ⊗",
        "label error.",
        "",
        *_table(summary),
    ]
    return "\n".join(lines) + "\n"


def _who_saw_whom(predictor: Predictor, *, average: bool) -> list[str]:
    """Lines that say of which networks the results are, and which stars the released ones have seen."""
    if not average and all(len(set(network.folds)) == 1 for network in predictor.networks.values()):
        return ["Of the networks released, on stars that they never saw."]
    what = "the average of the folds' weights" if average else "the mean over the folds"
    return [
        "Each star by the networks of the fold that it was kept out of, which never saw it (stars of no fold by",
        f"those of all). What is released is {what}: it has seen every star that was fine-tuned on,",
        "and cannot be tested on these.",
    ]


def _table(summary: Table) -> list[str]:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in summary:
        cells = [str(row["group"]), str(row["label"]), str(row["n"])]
        digits = 0 if row["label"] == "teff" else 3
        for name in COLUMNS[3:]:
            cells.append(_number(row[name], 2 if name.startswith("cover") else digits))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: Any, digits: int) -> str:
    return f"{float(value):.{digits}f}" if np.isfinite(value) else "-"


def _stars(workdir: Path, predictor: Predictor) -> dict[str, int]:
    """How many spectra were fine-tuned on, and of how many stars."""
    stars = readable_stars(workdir)
    chosen = within(stars, predictor.config["finetune"]["select"])
    return {
        "labelled": int(chosen.sum()),
        "different": len(set(np.asarray(stars["star_id"])[chosen].tolist())),
    }
