"""An expert on disk: `expert/expert.json` and `expert/references.npz` of a working folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remap.predict.ensemble import read_ensemble
from remap.predict.expert import BLOCKS, Block, Expert, References
from remap.preprocess.description import Preprocessing
from remap.store.atomic import (
    DamagedError,
    file_hash,
    named,
    read_arrays,
    save_arrays,
    seal,
    unseal,
    write_json,
)
from remap.store.checkpoint import check_equal
from remap.store.workdir import network_description

_AGAIN = "run launch.expert again"


class StoredExpert(NamedTuple):
    """What `save_expert` wrote."""

    references: References
    everyone: Expert
    folds: dict[int, Expert]
    digest: str  # of what was written, by which a calibration knows its expert


def save_expert(
    workdir: Path,
    references: References,
    everyone: Expert,
    folds: Mapping[int, Expert],
    labels: Mapping[str, np.ndarray],
    star_ids: np.ndarray,
    description: Mapping[str, Any],
    stage: str,
) -> None:
    """Writes an expert into a working folder.

    Args:
      labels: per label float[S], of the references.
      star_ids: str[S], of the references.
      description: of the fine-tuned networks (`Predictor.description`).
      stage: of the networks of the references.
    """
    folder = workdir / "expert"
    arrays = {
        f"{block}_{part}_{arm}": getattr(found, part)
        for arm, blocks in references.blocks.items()
        for block, found in zip(BLOCKS, blocks, strict=True)
        for part in Block._fields
    }
    save_arrays(
        folder / "references.npz",
        star_id=np.asarray(star_ids, str),
        edges=references.edges,
        **{f"label_{name}": values for name, values in labels.items()},
        **arrays,
    )
    about = {
        "networks": network_description(description),
        "stage": stage,
        "arms": list(references.blocks),
        "labels": list(labels),
        "arrays": file_hash(folder / "references.npz"),
        "all": everyone.to_json(),
        "folds": {str(fold): each.to_json() for fold, each in folds.items()},
    }
    write_json(folder / "expert.json", seal(about))


def read_expert(
    workdir: Path, preprocessing: Preprocessing, description: Mapping[str, Any], *, folds: bool = False
) -> StoredExpert | None:
    """The expert of a working folder, None without one.

    Args:
      description: of the fine-tuned networks that it is to stand beside.
      folds: read those of the folds as well, for reports on stars that took no part in them.

    Raises:
      DamagedError: a file is damaged or not that of the other, or one of the two is missing; names it.
      ConfigError: it belongs to other networks.
    """
    folder = workdir / "expert"
    if not (folder / "expert.json").is_file():
        return None
    with named(folder / "expert.json", _AGAIN):
        text = (folder / "expert.json").read_text()
        value = unseal(json.loads(text))
        arms, names = list(value["arms"]), list(value["labels"])
        known = value.get("arrays")  # which older versions did not write
    if not (folder / "references.npz").is_file():
        raise DamagedError(f"{folder / 'references.npz'}: is gone, expected it beside expert.json; {_AGAIN}")
    if known not in (None, file_hash(folder / "references.npz")):
        raise DamagedError(f"{folder / 'references.npz'}: is not what launch.expert wrote last; {_AGAIN}")
    arrays = read_arrays(folder / "references.npz", ("edges",), _AGAIN)
    with named(folder / "references.npz", _AGAIN):
        blocks = {
            arm: tuple(
                Block(*(arrays[f"{block}_{part}_{arm}"] for part in Block._fields)) for block in BLOCKS
            )
            for arm in arms
        }
        labels = {name: arrays[f"label_{name}"] for name in names}
        edges = arrays["edges"]
    check_equal(
        network_description(value["networks"]),
        network_description(description),
        f"{folder}: an expert beside other networks",
    )
    networks = read_ensemble(workdir, preprocessing, value["stage"], None).networks
    references = References(networks, blocks, edges)
    distances = {
        arm: np.stack([_among(block.values) for block in found]).astype(np.float32)
        for arm, found in blocks.items()
    }
    everyone = Expert.from_json(value["all"], distances, labels)
    own = value["folds"] if folds else {}
    of_folds = {int(k): Expert.from_json(each, distances, labels) for k, each in own.items()}
    return StoredExpert(references, everyone, of_folds, hashlib.sha256(text.encode()).hexdigest())


def expert_digest(workdir: Path) -> str | None:
    """By which a calibration knows the expert that it was fitted with; None without one."""
    path = workdir / "expert" / "expert.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _among(values: np.ndarray) -> np.ndarray:
    """float64[S, S]: squared distances of rows to each other."""
    x = values.astype(np.float64)
    square = np.sum(x**2, axis=1)
    return np.maximum(square[:, None] + square[None] - 2.0 * x @ x.T, 0.0)
