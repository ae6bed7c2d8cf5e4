"""The layout of a working folder: what each stage writes, and how the next one finds and checks it.

workdir/config.json                     the settings of the newest stage
workdir/data/preprocessing.json         the description of the inputs
workdir/data/library_ARM.npz            library on the arm's grid, before noise and normalisation
workdir/data/libraries/NAME/library_ARM.npz     the same of each of `config.libraries`
workdir/data/library_check.ecsv         what is odd about the nodes of the libraries
workdir/data/alpha_ARM.npz              response of the spectrum to [α/Fe], made where `augment.alpha` asks for it
workdir/data/templates.npz              spectra of the library that velocities are measured with
workdir/data/stationary.json            places of the survey's detector that are masked, if they were looked for
workdir/data/survey_ARM.npz             survey on the arm's grid, before normalisation
workdir/data/stars.ecsv                 one row per survey spectrum: labels, errors, status
workdir/pretrain/ARM/                   checkpoints/, metrics.jsonl, final/, embeddings_epoch_EEEE.npz
workdir/align/ARM/                      the same, pulled towards the survey's spectra (remap.stages.align)
workdir/finetune/ARM/fold_K/            the same, for every fold, and split.json: who trains it, who is tested
workdir/STAGE/ARM[/fold_K]/inputs.json  which prepared data that was trained on (remap.store.inputs)
workdir/data|STAGE/ARM[/fold_K]/run.lock    who writes there now (remap.store.lock)
workdir/cross_validate/STAGE/           what `remap.studies.cross_validate` lists
workdir/expert/                         the labelled stars as an expert beside the networks (remap.stages.expert)
workdir/calibration.json                how the PMFs of the fine-tuned networks are widened
workdir/finetune/calibrated.json        that they were calibrated, and the hash of what was written then
workdir/references/                     what predictions are compared with (remap.stages.references)
workdir/evaluate/                       tables and plots
workdir/visualize/                      maps of the embeddings
workdir/ablate/                         tables; VARIANT/seed_K.json: scores per star; VARIANT/seed_K/: a working
                                        folder, whose data/ and pretrain/ may be links to those of another

The autoencoder route adds:

workdir/search/                         results.jsonl, summary.ecsv of the grid search
workdir/autoencoder/member_K/           checkpoints/, metrics.jsonl, final/: autoencoder K, trained on the library
workdir/adapt/member_K/                 the same, fine-tuned on the survey's spectra
workdir/regressor/library|adapted/      the same for the regressors, for features before or after the fine-tuning
workdir/bridge/                         the report: tables, catalogues, figures
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import ConfigError, config_to_json
from remap.preprocess.description import Preprocessing, make_preprocessing
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates
from remap.sampling.mixture import mix
from remap.sampling.sources import Library, Stars, find_cells, node_cells
from remap.store.atomic import (
    file_hash,
    map_arrays,
    named,
    read_arrays,
    read_json,
    save_arrays,
    seal,
    unseal,
    write_json,
)
from remap.store.checkpoint import check_equal, has_final
from remap.store.lock import unfinished
from remap.store.tables import ecsv_writer, read_signed, signed
from remap.writing import write_files

PER_ARM = ("wave", "flux", "valid")  # of the templates of velocities
HASH = "sha256"  # key of a config's hash in its file
PREPARE = "run launch.preprocess again"  # what mends the files of `data`


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Records the settings of the stage that runs, and a hash of them: a digit decides what a catalogue says."""
    plain = config_to_json(config)
    write_json(workdir / "config.json", {**plain, HASH: _config_hash(plain)})


def _config_hash(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_config(workdir: Path) -> dict[str, Any]:
    """The recorded settings, as plain values.

    Raises:
      FileNotFoundError: no stage has run in `workdir`.
      DamagedError: the file holds no config, or another one than was written. A file without a hash, of before there
        was any or edited by hand, is believed.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir}: expected a trained working folder with config.json, found "
            f"{'none there' if workdir.is_dir() else 'no such folder'}"
        )
    cure = "run the newest stage again"
    found = read_json(path, cure)
    with named(path, cure):
        if missing := {"predict", "survey", "data_root"} - set(found):
            raise ValueError(f"expected a config, found none of its fields {sorted(missing)}")
        known = found.pop(HASH, None)
        # Of a hash whose name is damaged the value is still there.
        if known is None and any(re.fullmatch("[0-9a-f]{64}", str(value)) for value in found.values()):
            raise ValueError(f"expected {HASH!r}, found it under another name")
        if known is not None and known != _config_hash(found):
            raise ValueError(f"not what was written, by its hash; if you have edited it, delete its {HASH!r}")
    return found


def read_preprocessing(workdir: Path) -> Preprocessing:
    """The description written by the preprocess stage.

    Raises:
      FileNotFoundError: that stage has not run here.
    """
    path = workdir / "data" / "preprocessing.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the preprocess stage's output, found none; run it first")
    if unfinished(path.parent):
        raise ConfigError(
            f"{path.parent}: launch.preprocess is writing here, or was stopped before its end, so that the files "
            f"may not belong together; wait for it, or {PREPARE}"
        )
    found = read_json(path, PREPARE)
    with named(path, PREPARE):
        return Preprocessing.from_json(found)


def check_preprocessing(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raises ValueError with both values of every entry that differs; the software version may differ."""
    check_equal(found, expected, f"{where}: other preprocessing")


def library_path(data: Path, arm: str, name: str = "") -> Path:
    """Where one arm of a prepared library is; `name` as in `config.libraries`, "" = `config.library`."""
    return (data / "libraries" / name if name else data) / f"library_{arm}.npz"


def survey_path(data: Path, arm: str) -> Path:
    """Where one arm of the prepared survey is."""
    return data / f"survey_{arm}.npz"


def load_library(
    workdir: Path,
    preprocessing: Preprocessing,
    arm: str,
    *,
    interpolate: bool,
    weights: Mapping[str, float] | None = None,
) -> Library:
    """One arm of the preprocessed library, or of several as one (`mixture.mix`).

    Args:
      weights: share of the draws of each library by name (`mixture.library_weights`); None = `config.library` alone.
    """
    shares = {"": 1.0} if weights is None else dict(weights)
    parts = [_read_library(workdir, preprocessing, arm, name, interpolate=interpolate) for name in shares]
    return mix(parts, list(shares.values()))


def _read_library(
    workdir: Path, preprocessing: Preprocessing, arm: str, name: str, *, interpolate: bool
) -> Library:
    path = library_path(workdir / "data", arm, name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the preprocess stage's output, found none; run it (again) first"
        )
    a = read_arrays(path, ("log_flux", "valid", "labels", "sigma"), PREPARE)
    names = [b.name for b in preprocessing.labels]
    cells = find_cells(a["labels"], names) if interpolate else node_cells(len(a["labels"]))
    return Library(a["log_flux"], a["valid"], a["labels"].astype(np.float32), a["sigma"], cells)


def load_survey(workdir: Path, arm: str) -> tuple[Stars, np.ndarray]:
    """One arm of the preprocessed survey, and its signal-to-noise float[S] (NaN = unknown).

    Flux and mask are mapped: of a survey larger than memory some rows can be taken.
    """
    path = survey_path(workdir / "data", arm)
    a = map_arrays(path, ("flux", "valid", "labels", "errors", "snr"), PREPARE)
    survey = Stars(a["flux"], a["valid"], a["labels"].astype(np.float32), a["errors"].astype(np.float32))
    return survey, a["snr"]


def save_templates(workdir: Path, templates: Templates) -> None:
    """Writes the templates of velocities, whole or not at all."""
    arms = {f"{name}_{arm}": getattr(templates, name)[arm] for name in PER_ARM for arm in templates.wave}
    save_arrays(
        workdir / "data" / "templates.npz",
        labels=templates.labels,
        index=templates.index,
        taper=np.array(templates.taper),
        medium=np.array(templates.medium),
        arms=np.array(list(templates.wave)),
        **arms,
    )


def load_templates(workdir: Path) -> Templates | None:
    """The templates of velocities, or None in a folder that was prepared before there were any."""
    path = workdir / "data" / "templates.npz"
    if not path.is_file():
        return None
    a = read_arrays(path, ("arms", "labels", "index", "medium", "taper"), PREPARE)
    with named(path, PREPARE):
        arms = [str(arm) for arm in a["arms"]]
        per_arm = {name: {arm: a[f"{name}_{arm}"] for arm in arms} for name in PER_ARM}
        own = {"labels": a["labels"], "index": a["index"]}
        return Templates(**per_arm, **own, medium=str(a["medium"]), taper=float(a["taper"]))


def save_stationary(workdir: Path, mask: StationaryMask | None) -> None:
    """Writes which places of the survey's detector are masked; None takes the file of an earlier run away."""
    path = workdir / "data" / "stationary.json"
    if mask is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, seal(json.loads(mask.to_json())))


def load_stationary(workdir: Path) -> StationaryMask | None:
    """The mask that `save_stationary` wrote, or None."""
    path = workdir / "data" / "stationary.json"
    if not path.is_file():
        return None
    with named(path, PREPARE):
        return StationaryMask.from_json(json.dumps(unseal(json.loads(path.read_text()))))


def share(workdir: Path, name: str, source: Path) -> None:
    """Makes `workdir/name` a relative link to the folder `source / name`, unless it exists or `source` lacks it."""
    link, target = workdir / name, source / name
    if link.is_symlink() and not link.exists():
        link.unlink()
    if link.exists() or not target.is_dir():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(target.resolve(), workdir.resolve()), target_is_directory=True)


def write_stars(workdir: Path, stars: Table) -> None:
    """Writes the table of survey spectra, with a hash of it: a digit of a label is another training."""
    write_files({workdir / "data" / "stars.ecsv": ecsv_writer(signed(stars))})


def read_stars(workdir: Path) -> Table:
    """The table of survey spectra that `write_stars` wrote; empty texts are masked.

    Raises:
      FileNotFoundError: the preprocess stage has not run here, or had no survey.
      DamagedError: it is no table, or not what was written. One without a hash, of before there was any or edited by
        hand, is believed.
    """
    path = workdir / "data" / "stars.ecsv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the stars of a survey, found none: the preprocess stage has not run here, or its "
            "config has no survey (survey.path is empty)"
        )
    with named(path, PREPARE):
        return read_signed(path)


def stage_folder(workdir: Path, stage: str, arm: str, fold: int | None = None) -> Path:
    """Where a stage keeps one network."""
    folder = workdir / stage / arm
    return folder if fold is None else folder / f"fold_{fold}"


def finished_folds(workdir: Path, arm: str) -> list[int]:
    """Folds whose fine-tuning of this arm has finished, sorted."""
    named_so = {
        f: re.fullmatch(r"fold_(0|[1-9]\d*)", f.name) for f in (workdir / "finetune" / arm).glob("fold_*")
    }
    # A copy that was put aside as fold_0_old is none of them.
    return sorted(int(name[1]) for f, name in named_so.items() if name and has_final(f / "final"))


def network_description(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a calibration belongs to: how the fine-tuned networks were trained, whatever arm and fold.

    Which folds were asked for together (`split.run`) has no part in any of them.
    """
    split = {key: value for key, value in meta["split"].items() if key != "run"}
    return {"config": meta["config"], "split": split}


def write_calibration(workdir: Path, found: Mapping[str, Any]) -> None:
    """Writes `calibration.json`, and beside the networks that there is one."""
    path = workdir / "calibration.json"
    write_json(path, found)
    write_json(_calibrated(workdir), {"sha256": file_hash(path)})


def read_calibration(workdir: Path) -> dict[str, Any] | None:
    """What `calibrate` wrote, or None.

    Raises:
      DamagedError: it is no JSON, or holds no calibration.
    """
    path = workdir / "calibration.json"
    if not path.exists():
        return None
    cure = "run launch.calibrate again"
    found = read_json(path, cure)
    with named(path, cure):
        if missing := {"networks", "combine", "all", "folds"} - set(found):
            raise ValueError(f"expected a calibration, found none of {sorted(missing)}")
    return found


def calibration_hash(workdir: Path) -> str | None:
    """SHA-256 of the `calibration.json` that the networks of the folder were calibrated with last.

    None: they never were, or by a version that did not write it down.
    """
    path = _calibrated(workdir)
    if not path.exists():
        return None
    cure = "run launch.calibrate again"
    found = read_json(path, cure)
    with named(path, cure):
        return str(found["sha256"])


def _calibrated(workdir: Path) -> Path:
    return workdir / "finetune" / "calibrated.json"


def check_prepared(config: ml_collections.ConfigDict, workdir: Path) -> Preprocessing:
    """The preprocessing of the data in `workdir`, refused where it is not what the config asks for."""
    found = read_preprocessing(workdir)
    check_preprocessing(found.to_json(), make_preprocessing(config).to_json(), f"{workdir / 'data'}")
    return found
