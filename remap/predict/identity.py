"""What a prediction was made with, compared before it is used and told with the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remap import surveys
from remap.config import ConfigError, is_section
from remap.pmf.calibration import Calibration
from remap.predict.ensemble import Network
from remap.preprocess.observe_settings import ObserveSettings
from remap.store.atomic import file_hash, named
from remap.store.checkpoint import check_equal
from remap.store.workdir import calibration_hash, network_description, read_calibration
from remap.surveys import Survey

_AGAIN = (
    "run launch.calibrate again, or ask for the PMFs as the networks give them "
    "(calibrated=False, --nocalibrated)"
)


class OwnCalibration(NamedTuple):
    """What `read_own_calibration` finds."""

    calibration: Calibration | None
    alone: Calibration | None  # of the networks without an expert beside them
    digest: str  # of the file, "" without one


def read_own_calibration(
    workdir: Path,
    networks: Mapping[str, Network],
    description: Mapping[str, Any],
    combine: str,
    *,
    expert: str | None = None,
    alone: bool = False,
) -> OwnCalibration:
    """The calibration of a working folder, known to be that of these networks, and the hash of its file.

    Args:
      networks: of the arms, fine-tuned.
      description: of their training.
      combine: how the arms are combined.
      expert: digest of the expert beside them (`expert_store`), None without one.
      alone: the expert is left out on purpose: with a calibration that was fitted with one goes another, without it.

    Returns:
      Nothing where the networks were never calibrated.

    Raises:
      ConfigError: it belongs to other networks, other folds or another combination, is not the file that
        `launch.calibrate` wrote last, or is gone though it was there.
    """
    path, known = workdir / "calibration.json", calibration_hash(workdir)
    found = read_calibration(workdir)
    if found is None:
        if known is not None:
            raise ConfigError(f"{path}: expected the calibration of the networks, found none; {_AGAIN}")
        return OwnCalibration(None, None, "")
    check_equal(
        network_description(found["networks"]),
        network_description(description),
        f"{workdir}: calibration of other networks",
    )
    check_equal(found["combine"], combine, f"{workdir}: calibration of another predict.combine")
    if not alone:
        check_equal(found.get("expert"), expert, f"{workdir}: calibration with another expert (or none)")
    fitted = sorted(int(fold) for fold in found["folds"])
    for network in networks.values():
        if (own := sorted(set(network.folds))) != fitted:
            raise ConfigError(f"{path}: expected fits for the folds {own}, found {fitted}; {_AGAIN}")
    for arm, weights in found.get("weights", {}).items():  # which older versions did not write
        own = {str(fold): value for fold, value in networks[arm].weights.items()} if arm in networks else {}
        if other := [fold for fold in weights if own.get(fold) != weights[fold]]:
            raise ConfigError(f"{path}: fitted to other networks of arm {arm}, folds {other}; {_AGAIN}")
    digest = file_hash(path)
    if known not in (None, digest):
        raise ConfigError(f"{path}: is not the file that launch.calibrate wrote last; {_AGAIN}")
    with named(path, _AGAIN):
        whole, without = Calibration.from_json(found["all"]), found.get("alone")
        without = whole if without is None else Calibration.from_json(without["all"])
        return OwnCalibration(without if alone else whole, without, digest)


def describe_source(
    settings: ObserveSettings,
    survey: Survey | str | None = None,
    source: Mapping[str, Any] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Where spectra came from and how they were read and treated, as JSON values for the provenance.

    Args:
      settings: how they were treated.
      survey: whose files they are, None = the config's.
      source: how the files were read; None = they were no files.
      recorded: how the config says that its survey is read.

    Returns:
      survey (name, "" = the config's), source, source_overrides (fields that are not as the survey has them) and
      observe.
    """
    preset = surveys.get(survey) if isinstance(survey, str) else survey
    source, own = _plain(source or {}), _plain((recorded or {}) if preset is None else preset.source)
    return {
        "survey": "" if preset is None else preset.name,
        "source": source,
        "source_overrides": {key: value for key, value in source.items() if own.get(key) != value},
        "observe": _plain(dataclasses.asdict(settings)),
    }


def broken_arms(pmfs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Where an arm that could be used has a PMF that is not finite: of any label and, by its mean, of any network.

    Args:
      pmfs: arm -> float[L, S, K] and bool[S], whether the arm is used.

    Returns:
      bool[A, S], and object[S] of what is to be said of it ("" elsewhere).
    """
    broken = np.stack([used & ~np.isfinite(pmf).all(axis=(0, 2)) for pmf, used in pmfs.values()])
    why = np.array([""] * broken.shape[1], dtype=object)
    for i in np.flatnonzero(broken.any(axis=0)):
        arms = ", ".join(arm for arm, rows in zip(pmfs, broken, strict=True) if rows[i])
        why[i] = f"the networks of arm {arms} give no finite PMF"
    return broken, why


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value.to_dict() if is_section(value) else dict(value), default=str))
