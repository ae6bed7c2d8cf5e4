"""Cross-validation: settings compared by the losses of folds that were not trained on.

The paper leaves widths and depth of the network to it (fig. 1). In the stage "pretrain" the folds are folds of the
library's cells, in "finetune" of the labelled stars. Every candidate is trained once per fold and arm, all with the
same random numbers, and judged by the loss of the averaged network on the fold, without dropout.

WORKDIR/cross_validate/STAGE/ID/setting.json      all that the losses beside it depend on; ID is its digest
WORKDIR/cross_validate/STAGE/ID/ARM/fold_K.json   one finished training, never made again; fold_K/ has its curve
WORKDIR/cross_validate/STAGE/summary.ecsv, .json  the candidates of the newest run, compared
WORKDIR/cross_validate/STAGE/chosen.json          the chosen one, for --override of the launch scripts
WORKDIR/cross_validate/STAGE/optuna.db            the trials of a search
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from astropy.table import Table
from jaxtyping import Int

from remap.config import ConfigError, Section, apply_overrides, config_to_json, deciding, leaves, record
from remap.network.resnet import count_parameters, init_variables
from remap.preprocess.description import Preprocessing
from remap.sampling.folds import assign_folds
from remap.stages.common import Training, library_files, start_stage, train_network
from remap.stages.finetune import finetuning
from remap.stages.pretrain import Pretraining, held_out_batch, pretraining
from remap.store import checkpoint
from remap.store.atomic import check_writable, read_json, write_files, write_json
from remap.store.inputs import check_inputs, keep_inputs
from remap.store.stars import SplitSettings, fold_split, readable_stars, split_settings
from remap.store.tables import ecsv_writer
from remap.store.workdir import check_prepared, stage_folder, survey_path
from remap.studies.comparison import Candidate, FoldLoss, Result, compare
from remap.studies.optuna_search import FoldLosses, SearchSettings, search
from remap.train.loop import DivergedError, evaluate

logger = logging.getLogger(__name__)

STAGES = ("pretrain", "finetune")
FoldTraining = Callable[[str, int], Training]  # (arm, fold) -> a network's start, `validation` = the fold


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidationSettings:
    """What is compared, and how (config section `cross_validate`).

    Attributes:
      stage: "pretrain" or "finetune".
      folds: how many.
      fold: in "finetune", the fold of `split` whose test stars have no part; report that fold alone, or the choice
        has seen the stars of the report. -1 = all selected stars.
      cycles, epochs_per_cycle: the length of every training, in place of the stage's own.
      choose: "best" (least mean loss) or "smallest" (fewest parameters within one standard error of it).
      search: "candidates" compares those below, "optuna" searches in its space.
      candidates: one dict each, {"name": ..., "section.field": value, ...}.
      optuna: see `optuna_search.SearchSettings`.
    """

    stage: str = "pretrain"
    folds: int = 10
    fold: int = 0
    cycles: int = 2
    epochs_per_cycle: int = 5
    choose: str = "best"
    search: str = "candidates"
    candidates: Sequence[Section] = ()
    optuna: Section = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"stage": STAGES, "choose": ("best", "smallest"), "search": ("candidates", "optuna")}
        for field, values in known.items():
            if getattr(self, field) not in values:
                found = getattr(self, field)
                raise ConfigError(f"cross_validate.{field} must be one of {values}, found {found!r}")


def read_candidates(entries: Sequence[Section]) -> list[Candidate]:
    """The candidates of a config.

    Raises:
      ValueError: there are none, one has no name, or two share one.
    """
    nameless = [dict(entry) for entry in entries if not isinstance(entry.get("name"), str)]
    if nameless:
        raise ConfigError(f'cross_validate.candidates: expected a "name" in each, found none in {nameless}')
    names = [entry["name"] for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"cross_validate.candidates: expected different names, found {names}")
    return [Candidate(e["name"], {k: v for k, v in e.items() if k != "name"}) for e in entries]


def cross_validate(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Compares settings in a folder in which `preprocess` has run; finished trainings are not made again.

    Returns:
      One row per candidate, see `comparison.compare`, and `chosen`; also written, see the head of this module.

    Raises:
      FileNotFoundError: a stage before has not been run.
      ValueError: settings that do not exist or cannot be compared, or no candidate with a finite loss.
      Preempted: SIGTERM arrived; the same command goes on.
    """
    workdir = Path(workdir)
    settings = record(CrossValidationSettings, config.cross_validate, "cross_validate")
    preprocessing = check_prepared(config, workdir)
    base = shortened(config, settings)
    folder = workdir / "cross_validate" / settings.stage
    check_writable(folder / "summary.json")
    losses = fold_losses(base, workdir, preprocessing, settings, folder)
    if settings.search == "optuna":
        space = record(SearchSettings, settings.optuna, "cross_validate.optuna")
        candidate_config(base, space.corner, settings.stage)  # its mistakes before any training
        results = search(
            losses,
            space,
            folds=settings.folds,
            seed=config.seed,
            storage=folder / "optuna.db",
            name=_study(base, workdir, preprocessing, settings, space),
        )
    else:
        candidates = read_candidates(settings.candidates)
        for candidate in candidates:
            candidate_config(base, candidate, settings.stage)
        results = [Result(candidate, tuple(losses(candidate))) for candidate in candidates]
    return _report(results, settings, folder)


def shortened(
    config: ml_collections.ConfigDict, settings: CrossValidationSettings
) -> ml_collections.ConfigDict:
    """The config of the trainings, before a candidate's own settings."""
    length = {name: getattr(settings, name) for name in ("cycles", "epochs_per_cycle")}
    overrides = {f"{settings.stage}.{name}": value for name, value in length.items()}
    # Every cell belongs to a fold: none is set aside besides.
    return apply_overrides(config, overrides | {"pretrain.validation": 0.0}, "cross_validate")[0]


def candidate_config(
    base: ml_collections.ConfigDict, candidate: Candidate, stage: str
) -> ml_collections.ConfigDict:
    """The config of a candidate.

    Raises:
      ValueError: a field that does not exist, or one that changes what the loss is or which spectra it is of.
    """
    where = f"cross_validate candidate {candidate.name!r}"
    fixed = {
        "pretrain": ("cycles", "epochs_per_cycle", "validation", "validation_size"),
        "finetune": ("cycles", "epochs_per_cycle", "select"),
    }[stage]
    for (section, *rest), _ in leaves(candidate.overrides):
        key = ".".join((section, *rest))
        if section not in ("model", "augment", stage):
            raise ConfigError(f"{where}: expected fields of model, augment or {stage}, found {key!r}")
        if section == stage and rest[:1] and rest[0] in fixed:
            raise ConfigError(f"{where}: {key!r} must be the same for all; cross_validate sets the length")
    return apply_overrides(base, candidate.overrides, where)[0]


def fold_losses(
    base: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    settings: CrossValidationSettings,
    folder: Path,
) -> FoldLosses:
    """A function that gives the folds of a candidate one by one, trained or from the files of `folder`."""
    files = [path for arm in preprocessing.arms for path in library_files(base, workdir, arm)]
    if settings.stage == "finetune":
        files += [survey_path(workdir / "data", arm) for arm in preprocessing.arms]
    check_inputs(folder, workdir)
    folds_of = {"pretrain": _library_folds, "finetune": _star_folds}[settings.stage]
    open_folds = folds_of(base, workdir, preprocessing, settings)

    def losses(candidate: Candidate) -> Iterator[FoldLoss]:
        config = candidate_config(base, candidate, settings.stage)
        setting = _describe(config, base, workdir, preprocessing, settings)
        mine = folder / digest(setting)
        keep_inputs(folder, workdir, files)
        write_json(mine / "setting.json", {"overrides": dict(candidate.overrides)} | setting)
        training = open_folds(config)
        for fold in range(settings.folds):
            records = [_run_fold(training, arm, fold, mine, candidate.name) for arm in preprocessing.arms]
            loss = np.mean([r["loss"] if r["loss"] is not None else np.inf for r in records])
            seconds = sum(r["seconds"] for r in records)
            yield FoldLoss(float(loss), records[0]["parameters"], seconds)
            if not np.isfinite(loss):
                return  # it cannot be chosen any more

    return losses


def _run_fold(training: FoldTraining, arm: str, fold: int, folder: Path, candidate: str) -> dict[str, Any]:
    """The record of one training, made if it is not there."""
    scratch = folder / arm / f"fold_{fold}"
    path = scratch.with_suffix(".json")
    if path.is_file():
        return read_json(path, "delete it to train this fold again")
    name = f"cross_validate {candidate}, {arm} fold {fold}"
    began = time.monotonic()
    start = training(arm, fold)
    meta = {"setting": folder.name, "arm": arm, "fold": fold}
    # Without the fold: its loss is wanted of the averaged network alone.
    blind = start._replace(validation=None)
    loss, terms = None, {}
    try:
        averaged = train_network(blind, folder=scratch, meta=meta, name=name)
        judged = evaluate(
            averaged["params"], averaged["batch_stats"], start.validation, objective=start.objective
        )
        if np.isfinite(judged.total):
            loss = float(judged.total)
            terms = {k: np.asarray(v).tolist() for k, v in judged._asdict().items() if k != "total"}
    except DivergedError as error:
        logger.warning("%s", error)
    record = {
        "candidate": candidate,
        "loss": loss,  # None: diverged
        "terms": terms,
        "validation": int(np.asarray(start.validation.valid).any(axis=1).sum()),  # the others fill up
        "parameters": count_parameters(start.variables["params"]),
        "seconds": time.monotonic() - began,  # since its last interruption
    }
    write_json(path, record)
    shutil.rmtree(scratch / "checkpoints", ignore_errors=True)
    logger.info("%s: loss %s", name, "diverged" if loss is None else f"{loss:.4f}")
    return record


# ------------------------------------------------------------------------------------------------- folds


def cell_folds(cells: Int[np.ndarray, "cells corners"], folds: int, seed: int) -> Int[np.ndarray, " cells"]:
    """The fold of every library cell, the same in all arms: it depends on the lowest corner, not on the order."""
    return assign_folds([str(node) for node in cells[:, 0]], folds, seed)


def star_folds(stars: Table, settings: SplitSettings, *, folds: int, fold: int) -> Int[np.ndarray, " stars"]:
    """The fold of every spectrum, by star; -1 for stars that are not selected and for test stars of `fold`."""
    split = fold_split(stars, settings, fold)
    used = (split == "train") | (split == "val")
    out = np.full(len(stars), -1)
    out[used] = assign_folds(np.asarray(stars["star_id"][used]), folds, settings.seed)
    return out


def _library_folds(
    base: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    settings: CrossValidationSettings,
) -> Callable[[ml_collections.ConfigDict], FoldTraining]:
    @functools.cache
    def judge(arm: str) -> Pretraining:
        """Draws the spectra of the folds, the same for all candidates whatever their augmentation is."""
        return pretraining(base, workdir, preprocessing, arm)

    def without(start: Pretraining, fold: int) -> Pretraining:
        cells = np.asarray(start.library.cells)
        held = cell_folds(cells, settings.folds, base.seed) == fold
        return start._replace(source=start.drawing_from(cells[~held]), held_out=cells[held])

    def open_folds(config: ml_collections.ConfigDict) -> FoldTraining:
        @functools.cache
        def whole(arm: str) -> Pretraining:
            return pretraining(config, workdir, preprocessing, arm)

        def training(arm: str, fold: int) -> Training:
            start = without(whole(arm), fold)
            init_key, fit_key = jax.random.split(jax.random.fold_in(start.fit_key, fold))
            variables = init_variables(start.arm.model, init_key, start.library.log_flux.shape[-1])
            start = start._replace(variables=variables, fit_key=fit_key)
            return start.training(held_out_batch(without(judge(arm), fold)))

        return training

    return open_folds


def _star_folds(
    base: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    settings: CrossValidationSettings,
) -> Callable[[ml_collections.ConfigDict], FoldTraining]:
    stars, how = readable_stars(workdir), split_settings(base)
    folds = star_folds(stars, how, folds=settings.folds, fold=settings.fold)

    def open_folds(config: ml_collections.ConfigDict) -> FoldTraining:
        def training(arm: str, fold: int) -> Training:
            split = np.select([folds == fold, folds >= 0], ["val", "train"], "other")
            start = finetuning(config, workdir, preprocessing, arm, fold, split)
            if start.validation is None:
                raise ConfigError(
                    f"arm {arm}: expected usable stars in fold {fold} of {settings.folds}, found none"
                )
            return start

        return training

    return open_folds


# ------------------------------------------------------------------------------------------------ records


def _describe(
    config: ml_collections.ConfigDict,
    base: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    settings: CrossValidationSettings,
) -> dict[str, Any]:
    """All that the losses of a candidate depend on."""
    common = config_to_json(base)
    stage = settings.stage
    out = {
        "stage": stage,
        "folds": settings.folds,
        "preprocessing": {k: v for k, v in preprocessing.to_json().items() if k != "software"},
        "config": deciding(config, "candidate", also=(stage,)),
    }
    if stage == "pretrain":
        judge = {name: common["pretrain"][name] for name in ("batch_size", "validation_size")}
        return out | {"judge": judge | {"augment": common["augment"]}}
    out |= {
        "fold": settings.fold,
        "split": common["split"]["folds"],
        "min_coverage": common["predict"]["min_coverage"],
    }
    if config.finetune.init == "pretrained":
        stage = start_stage(config)
        finals = {arm: stage_folder(workdir, stage, arm) / "final" for arm in preprocessing.arms}
        out["start"] = {arm: checkpoint.load_final(path)[1]["config"] for arm, path in finals.items()}
    return out


def _study(
    base: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    settings: CrossValidationSettings,
    space: SearchSettings,
) -> str:
    """A name that differs where the losses or the rules of the search do; more trials may be asked for later."""
    rules = {k: v for k, v in dataclasses.asdict(space).items() if k != "trials"}
    return digest({"base": _describe(base, base, workdir, preprocessing, settings), "rules": rules})


def digest(value: Any) -> str:
    """Twelve characters that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _report(results: Sequence[Result], settings: CrossValidationSettings, folder: Path) -> Table:
    found = compare(results, settings.folds)
    name = found.best if settings.choose == "best" else found.smallest
    table = Table(rows=[row | {"chosen": row["name"] == name} for row in found.rows])
    for column in ("mean", "std", "error", "difference", "difference_error"):
        table[column].info.format = ".4f"
    table["seconds"].info.format = ".0f"
    by_name = {r.candidate.name: r for r in results}
    candidates = [
        {k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in row.items()}
        | {"overrides": dict(by_name[row["name"]].candidate.overrides)}
        | {"losses": [v if np.isfinite(v) else None for v in by_name[row["name"]].losses.tolist()]}
        for row in found.rows
    ]
    summary = {
        "stage": settings.stage,
        "folds": settings.folds,
        "cycles": settings.cycles,
        "epochs_per_cycle": settings.epochs_per_cycle,
        "best": found.best,
        "smallest": found.smallest,
        "chosen": name,
        "candidates": candidates,
    }
    write_json(folder / "summary.json", summary)
    write_files({folder / "summary.ecsv": ecsv_writer(table)})
    write_json(folder / "chosen.json", dict(by_name[name].candidate.overrides))
    for line in table.pformat(max_lines=-1, max_width=-1):
        logger.info("%s", line)
    logger.info(
        "cross_validate: least mean loss %s; smallest network within one standard error of it %s; chosen %s",
        found.best,
        found.smallest,
        name,
    )
    return table
