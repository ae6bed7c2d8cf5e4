"""The trained networks of a working folder, with all that the stages have left beside them, as a `Predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remap.config import ConfigError
from remap.pmf.distributions import COMBINATIONS
from remap.predict.ensemble import read_ensemble
from remap.predict.expert_store import read_expert
from remap.predict.identity import OwnCalibration, read_own_calibration
from remap.predict.predictor import Predictor
from remap.predict.references import read_references
from remap.store.workdir import load_stationary, load_templates, read_config, read_preprocessing


def load(
    workdir: str | Path,
    *,
    stage: str = "finetune",
    folds: Sequence[int] | None = None,
    calibrated: bool = True,
    expert: bool = True,
    references: bool = True,
) -> Predictor:
    """The trained networks of a working folder.

    Args:
      workdir: a folder in which the stages have run; nothing else is needed.
      stage: "finetune"; "pretrain" for the networks that saw no observed star, "align" for those that saw them
        without labels.
      folds: of the fine-tuned networks to use; None = all that were fine-tuned together, which must all be there.
      calibrated: use the calibration of the fine-tuned networks, where `launch.calibrate` has made one.
      expert: use the expert that stands beside them, where `launch.expert` has made one. False leaves it out, and the
        networks have a calibration of their own.
      references: use the spectra that `launch.references` has kept of the fine-tuned networks, where it has:
        neighbours in the catalogue, and the flag FAR.

    Raises:
      FileNotFoundError: the folder is missing or holds no finished network of this stage.
      ConfigError: the networks of the folds and arms are not of one training (two folders and both values are
        named), are damaged, or a fold is missing; they were trained with another preprocessing than the folder's
        (both values are named), or by another version of it; or the calibration belongs to other networks or
        folds, or is gone; the references belong to other networks.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    expected = read_preprocessing(workdir)
    if config["predict"]["combine"] not in COMBINATIONS:
        raise ConfigError(
            f"{workdir}: predict.combine must be one of {COMBINATIONS}, found {config['predict']['combine']!r}"
        )
    networks, description = read_ensemble(workdir, expected, stage, folds)
    beside = read_expert(workdir, expected, description) if stage == "finetune" and expert else None
    found = OwnCalibration(None, None, "")
    if stage == "finetune" and calibrated:
        found = read_own_calibration(
            workdir,
            networks,
            description,
            config["predict"]["combine"],
            expert=None if beside is None else beside.digest,
            alone=not expert,
        )
    known = None
    if stage == "finetune" and references:
        known = read_references(workdir, expected, networks)
    return Predictor(
        preprocessing=expected,
        networks=networks,
        config=config,
        calibration=found.calibration,
        description=description,
        templates=load_templates(workdir),
        stationary=load_stationary(workdir),
        expert=None if beside is None else beside.everyone,
        references=None if beside is None else beside.references,
        alone=found.alone,
        calibration_hash=found.digest,
        expert_hash="" if beside is None else beside.digest,
        known=known,
    )
