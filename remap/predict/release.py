"""Networks as a few small files to hand on: written from a working folder, found by name, read with no other data.

A released network is a folder:

network.json            config, preprocessing, what the trainings share, calibration, which member is of which fold,
                        and SHA-256 of every other file
weights.safetensors     the arrays of all members, "ARM/NUMBER/..." (and "ARM/prior")
templates.safetensors   spectra of the library that velocities are measured with
references.safetensors  spectra to compare with, for neighbours and the flag FAR (`remap.predict.packing`)
CARD.md                 what it was trained on, its range, results on stars kept aside, what to cite

Weights are float16, which halves the files, unless that moves a median by more than a hundredth of the width: then
they are float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from remap._version import __version__
from remap.config import ConfigError
from remap.network.resnet import build_model
from remap.pmf.calibration import Calibration
from remap.pmf.distributions import pmf_summary
from remap.predict import loading
from remap.predict.arms import ArmInputs
from remap.predict.ensemble import Network
from remap.predict.packing import pack, unpack
from remap.predict.predictor import Predictor
from remap.preprocess.description import Preprocessing
from remap.preprocess.templates import Templates
from remap.store.atomic import named, write_files
from remap.store.checkpoint import array_hash, plain

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when older versions could not read what is written
RECORD, WEIGHTS, TEMPLATES, CARD = "network.json", "weights.safetensors", "templates.safetensors", "CARD.md"
REFERENCES = "references.safetensors"
PRECISION = 0.01  # of a width: how far float16 may move a median
_PER_ARM = ("wave", "flux", "valid")
_CURE = "install the package again, or write it anew with launch.release"


def networks() -> dict[str, str]:
    """Networks that come with the package: name -> the first line of what its card says."""
    found = {}
    if not _shipped().is_dir():
        return found
    for folder in sorted(_shipped().iterdir(), key=lambda f: f.name):
        if (folder / RECORD).is_file():
            lines = (folder / CARD).read_text(encoding="utf-8").splitlines()
            found[folder.name] = next((line for line in lines if line and not line.startswith("#")), "")
    return found


def load(place: str | Path, **options: Any) -> Predictor:
    """Trained networks: those that come with the package by their name, or those of a folder.

    Args:
      place: a name of `networks()`, a folder that `release` wrote, or a working folder.
      **options: `calibrated`, `references`, and of working folders alone the others of
        `remap.predict.loading.load`.

    Raises:
      FileNotFoundError: there is neither such a folder nor such a name.
      ConfigError: an option that the network does not have; files that are damaged (`DamagedError`), of a later
        version, or that do not belong together.
    """
    folder = Path(place)
    if folder.is_dir():
        if (folder / RECORD).is_file():
            return read_release(folder, **options)
        return loading.load(folder, **options)
    names = networks()
    if str(place) not in names:
        raise FileNotFoundError(
            f"{place}: expected a trained working folder or a network that comes with the package "
            f"({', '.join(names) or 'none'}), found no such folder"
        )
    with importlib.resources.as_file(_shipped() / str(place)) as shipped:
        return read_release(shipped, **options)


def release(
    predictor: Predictor, folder: str | Path, *, name: str, card: str, precision: float = PRECISION
) -> dict[str, int]:
    """Writes networks as files to hand on.

    Args:
      predictor: of a working folder; without an expert (`Predictor.without_expert`).
      folder: made if it is not there; the files of an older release in it are replaced.
      name: of the network.
      card: Markdown; the first line that is no heading says what it is in one sentence.
      precision: by how many predicted widths medians of the velocity templates' spectra may move by rounding weights
        to float16; where they move by more, weights stay float32.

    Returns:
      File -> bytes.

    Raises:
      ConfigError: an expert, or no template spectra.
    """
    if predictor.expert is not None:
        raise ConfigError(f"{name}: expected networks without an expert, which knows only their own survey")
    if predictor.templates is None:
        raise ConfigError(f"{name}: expected spectra of the library to measure velocities with, found none")
    arrays, members = _weights(predictor, np.float16)
    finite = all(np.isfinite(leaf).all() for leaf in arrays.values())
    moved = _moved(predictor, _rounded(predictor, arrays, members)) if finite else np.inf
    if not moved <= precision:
        arrays, members = _weights(predictor, np.float32)
    kept = "float16" if moved <= precision else "float32"
    logger.info("%s: medians move by up to %.2g widths in float16; weights are %s", name, moved, kept)
    templates, about = _template_arrays(predictor.templates)
    contents = {
        WEIGHTS: safetensors.numpy.save(arrays),
        TEMPLATES: safetensors.numpy.save(templates),
        CARD: card.encode(),
    }
    references = None
    if predictor.known is not None:
        packed, references = pack(predictor.known)
        contents[REFERENCES] = safetensors.numpy.save(packed)
    record = {
        "format": FORMAT,
        "name": name,
        "software": __version__,
        "config": _portable(predictor.config),
        "preprocessing": predictor.preprocessing.to_json(),
        "description": plain(predictor.description),
        "members": members,
        "calibration": None if predictor.calibration is None else plain(predictor.calibration.to_json()),
        "templates": about,
        "references": references,
        "files": {file: _digest(content) for file, content in contents.items()},
    }
    record["hash"] = _record_hash(record)
    contents[RECORD] = (json.dumps(record, indent=1) + "\n").encode()
    folder = Path(folder)
    write_files({folder / file: _writer(content) for file, content in contents.items()})
    return {file: len(content) for file, content in contents.items()}


def read_release(
    folder: Path, *, calibrated: bool = True, references: bool = True, **options: Any
) -> Predictor:
    """The predictor of a folder that `release` wrote.

    Args:
      folder: with the files.
      calibrated: use its calibration.
      references: use its references, where it has some.
      **options: those that working folders alone have; refused unless None.

    Raises:
      DamagedError: a file is not what was written, by its hash; names it.
      ConfigError: options that a released network does not have, or a format of a later version.
    """
    if wrong := sorted(key for key, value in options.items() if value is not None):
        raise ConfigError(f"{folder}: a released network has no {', '.join(wrong)}; leave them out")
    record = _read_record(folder)
    with named(folder / RECORD, _CURE):
        preprocessing = Preprocessing.from_json(record["preprocessing"])
        description, config = record["description"], record["config"]
        arrays = _read_tensors(folder / WEIGHTS, record)
        model = build_model(description["config"]["model"], preprocessing.labels)
        found = {
            arm: _network(arm, arrays, members, model)
            for arm, members in record["members"].items()
            if arm in preprocessing.arms
        }
        calibration = record["calibration"] if calibrated else None
        templates = _read_tensors(folder / TEMPLATES, record)
        about = record["templates"]
        predictor = Predictor(
            preprocessing=preprocessing,
            networks=found,
            config=config,
            calibration=None if calibration is None else Calibration.from_json(calibration),
            description=description,
            templates=_templates(templates, about),
            calibration_hash="" if calibration is None else _digest(json.dumps(calibration).encode()),
        )
        if record["references"] is None or not references:
            return predictor
        packed = _read_tensors(folder / REFERENCES, record)
        digest = record["files"][REFERENCES]
        return dataclasses.replace(predictor, known=unpack(packed, record["references"], predictor, digest))


def card_of(place: str | Path) -> str:
    """The card of a released network, by name or folder."""
    folder = Path(place)
    found = folder if folder.is_dir() else _shipped() / str(place)
    if not (found / CARD).is_file():
        raise FileNotFoundError(
            f"{place}: expected a network that comes with the package ({', '.join(networks())}) or the folder of a "
            "released one, found none"
        )
    return (found / CARD).read_text(encoding="utf-8")


def _shipped() -> Any:
    return importlib.resources.files("remap") / "networks"


def _weights(
    predictor: Predictor, kind: type[np.floating]
) -> tuple[dict[str, np.ndarray], dict[str, list[dict[str, Any]]]]:
    """All arrays by name, rounded, and arm -> fold, step and hash of each member."""
    arrays: dict[str, np.ndarray] = {}
    members: dict[str, list[dict[str, Any]]] = {}
    for arm, network in predictor.networks.items():
        steps = dict(zip(dict.fromkeys(network.folds), network.steps, strict=True))
        members[arm] = []
        for number, (variables, fold) in enumerate(zip(network.members, network.folds, strict=True)):
            with np.errstate(over="ignore"):  # infinite ones are not written
                own = {
                    "/".join(map(str, key)): np.asarray(leaf).astype(kind)
                    for key, leaf in traverse_util.flatten_dict(dict(variables)).items()
                }
            arrays |= {f"{arm}/{number}/{key}": leaf for key, leaf in own.items()}
            members[arm].append(
                {"fold": fold, "step": int(steps[fold]), "trained": network.weights.get(fold, "")}
            )
        if network.prior is not None:
            arrays[f"{arm}/prior"] = np.asarray(network.prior, np.float32)
    return arrays, members


def _network(
    arm: str, arrays: Mapping[str, np.ndarray], members: Sequence[Mapping[str, Any]], model: Any
) -> Network:
    """The members of an arm, float32 again."""
    trees, weights, steps = [], {}, {}
    for number, member in enumerate(members):
        start = f"{arm}/{number}/"
        own = {
            tuple(key.removeprefix(start).split("/")): jnp.asarray(leaf.astype(np.float32))
            for key, leaf in arrays.items()
            if key.startswith(start)
        }
        tree = traverse_util.unflatten_dict(own)
        trees.append(tree)
        weights[int(member["fold"])] = array_hash(tree)
        steps[int(member["fold"])] = int(member["step"])
    folds = tuple(int(m["fold"]) for m in members)
    prior = arrays.get(f"{arm}/prior")
    return Network(model, tuple(trees), folds, tuple(steps.values()), prior, weights)


def _rounded(predictor: Predictor, arrays: Mapping[str, np.ndarray], members: Mapping[str, Any]) -> Predictor:
    found = {arm: _network(arm, arrays, members[arm], n.model) for arm, n in predictor.networks.items()}
    return Predictor(predictor.preprocessing, found, predictor.config)


def _moved(predictor: Predictor, rounded: Predictor) -> float:
    """By how many widths (half of p84 - p16) the rounding moves a median of an arm, for the templates, at most."""
    moved = 0.0
    for arm in predictor.networks:
        flux = 1.0 + np.asarray(predictor.templates.flux[arm])
        wave = predictor.preprocessing.wave(arm)
        given = predictor.templates.wave[arm]
        flux = np.stack([np.interp(wave, given, one) for one in flux]).astype(np.float32)
        inputs = ArmInputs(flux, np.ones(flux.shape, bool), np.full(len(flux), np.nan))
        before, after = (p.predict_arm(arm, inputs).pmf for p in (predictor, rounded))
        for j, b in enumerate(predictor.preprocessing.labels):
            one, other = (pmf_summary(p[j][:, : b.bins], b.edges) for p in (before, after))
            width = np.maximum((one["p84"] - one["p16"]) / 2, np.diff(b.edges).min() / 4)
            moved = max(moved, float(np.max(np.abs(one["median"] - other["median"]) / width)))
    return moved


def _template_arrays(templates: Templates) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {
        f"{name}/{arm}": np.asarray(getattr(templates, name)[arm])
        for name in _PER_ARM
        for arm in templates.wave
    }
    arrays |= {"labels": np.asarray(templates.labels), "index": np.asarray(templates.index)}
    about = {"arms": list(templates.wave), "medium": templates.medium, "taper": float(templates.taper)}
    return {key: np.ascontiguousarray(value) for key, value in arrays.items()}, about


def _templates(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Templates:
    per_arm = {name: {arm: arrays[f"{name}/{arm}"] for arm in about["arms"]} for name in _PER_ARM}
    return Templates(
        **per_arm,
        labels=arrays["labels"],
        index=arrays["index"],
        medium=about["medium"],
        taper=float(about["taper"]),
    )


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the places of one machine, for spectra of surveys that the networks do not know.

    A working folder's spectra without a width have that of its survey. Others are of any width, and flagged.
    """
    found = plain(config)
    return {**found, "data_root": "", "observe": {**found.get("observe", {}), "trust_width": False}}


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    with named(path, _CURE):
        record = json.loads(path.read_text(encoding="utf-8"))
        later = record["format"] > FORMAT
        if not later and record.pop("hash") != _record_hash(record):
            raise ValueError("it is not what was written, by its hash")
    if later:
        raise ConfigError(
            f"{folder}: expected a network of format {FORMAT} or before, found {record['format']} of version "
            f"{record.get('software')}; install a newer version of the package"
        )
    return record


def _read_tensors(path: Path, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    with named(path, _CURE):
        content = path.read_bytes()
        if _digest(content) != record["files"][path.name]:
            raise ValueError("it is not what was written, by its hash")
        return safetensors.numpy.load(content)


def _record_hash(record: Mapping[str, Any]) -> str:
    return _digest(json.dumps(record, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _writer(content: bytes) -> Any:
    return lambda file: file.write(content)
