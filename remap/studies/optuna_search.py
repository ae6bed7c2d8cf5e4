"""A search over ranges of settings by the tree-structured Parzen estimator of Optuna, an optional package.

Bergstra et al. 2011 (NeurIPS 24), Akiba et al. 2019 (arXiv:1907.10902).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from remap.config import ConfigError, Section, tuples
from remap.studies.comparison import Candidate, FoldLoss, Result, mean_and_error

logger = logging.getLogger(__name__)

FoldLosses = Callable[[Candidate], Iterator[FoldLoss]]  # the folds of a candidate, each when it is asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The search (config section `cross_validate.optuna`).

    Attributes:
      trials: settings to try, those that were stopped included.
      startup: the first so many are drawn at random.
      stop_folds: folds that every trial is given.
      stop_errors: after them a trial is stopped when its mean loss lies above that of the best one, on the same
        folds, by more than so many standard errors of the difference; inf = never.
      space: what is varied, one dict per field: {"field": "section.field", "kind": "int" or "float", "low": ...,
        "high": ..., "log": True for a logarithmic scale} or {"field": ..., "kind": "choice", "values": (...)}.
    """

    trials: int = 30
    startup: int = 10
    stop_folds: int = 3
    stop_errors: float = 3.0
    space: Sequence[Section]

    def __post_init__(self) -> None:
        if self.trials < 1 or self.startup < 1 or self.stop_folds < 2 or not self.stop_errors > 0:
            raise ConfigError(
                "cross_validate.optuna: expected trials and startup of at least 1, stop_folds of at least 2 and "
                f"stop_errors above 0, found {self.trials}, {self.startup}, {self.stop_folds}, {self.stop_errors}"
            )
        if not self.space:
            raise ConfigError("cross_validate.optuna.space: expected at least one field, found none")
        for entry in self.space:
            _check(entry)

    @property
    def corner(self) -> Candidate:
        """One point of the space, to check its fields with."""
        values = {e["field"]: e["values"][0] if e["kind"] == "choice" else e["low"] for e in self.space}
        return Candidate("of the space of cross_validate.optuna", values)


def _check(entry: Section) -> None:
    ranges, choice = {"field", "kind", "low", "high", "log"}, {"field", "kind", "values"}
    expected = {"int": ranges, "float": ranges, "choice": choice}.get(entry.get("kind"))
    if expected is None or set(entry) != expected:
        raise ConfigError(
            f"cross_validate.optuna.space: expected {sorted(ranges)} with kind 'int' or 'float', or "
            f"{sorted(choice)} with kind 'choice', found {dict(entry)}"
        )
    if entry["kind"] == "choice":
        if not entry["values"]:
            raise ConfigError(f"cross_validate.optuna.space: {entry['field']}: expected values, found none")
    elif not entry["low"] < entry["high"] or (entry["log"] and entry["low"] <= 0):
        raise ConfigError(
            f"cross_validate.optuna.space: {entry['field']}: expected low < high, and low > 0 on a logarithmic "
            f"scale, found {entry['low']} and {entry['high']}"
        )


def search(
    losses: FoldLosses, settings: SearchSettings, *, folds: int, seed: int, storage: Path, name: str
) -> list[Result]:
    """Tries settings until there are `settings.trials` of them; those that `storage` has are not drawn again.

    What is tried depends on the seed and on the losses before, so that an interrupted search goes on as if it
    had not been, and asks for the fold that it was at.

    Args:
      losses: of the folds of a setting; only asked for as far as the trial gets.
      folds: how many there are.
      storage: SQLite file, of one process at a time.
      name: of the study in it; must differ where losses or space do.

    Returns:
      The trials in their order.

    Raises:
      ValueError: Optuna is not installed.
    """
    optuna = _optuna()
    states = optuna.trial.TrialState
    storage.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{storage.absolute()}", study_name=name, direction="minimize", load_if_exists=True
    )
    distributions = {entry["field"]: _distribution(optuna, entry) for entry in settings.space}
    for trial in study.get_trials(states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)  # interrupted: the same setting will be drawn again
    results: list[Result] = []
    for trial in study.get_trials(states=(states.COMPLETE, states.PRUNED)):
        candidate = _candidate(len(results), trial.params, settings.space)
        fold = losses(candidate)
        results.append(Result(candidate, tuple(next(fold) for _ in range(trial.user_attrs["folds"]))))
    while len(results) < settings.trials:
        # A seed per trial: the state of a generator would be lost with the process.
        trial_seed = int(np.random.SeedSequence((seed, len(results))).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=trial_seed, n_startup_trials=settings.startup)
        trial = study.ask(distributions)
        candidate = _candidate(len(results), trial.params, settings.space)
        logger.info("search: %s of %d: %s", candidate.name, settings.trials, dict(candidate.overrides))
        finished = [r for r in results if r.finished(folds)]
        best = min(finished, key=lambda r: r.losses.mean()) if finished else None
        result = Result(candidate, ())
        for fold in losses(candidate):
            result = Result(candidate, (*result.folds, fold))
            if not np.isfinite(fold.loss):
                break
            trial.report(float(result.losses.mean()), len(result.folds))
            if len(result.folds) < folds and hopeless(result, best, settings):
                logger.info("search: %s stopped after %d folds", candidate.name, len(result.folds))
                break
        trial.set_user_attr("folds", len(result.folds))
        if result.finished(folds):
            study.tell(trial, float(result.losses.mean()))
        else:
            study.tell(trial, state=states.PRUNED)
        results.append(result)
    return results


def hopeless(result: Result, best: Result | None, settings: SearchSettings) -> bool:
    """True if the folds so far say that a trial will not come near the best one."""
    if best is None or len(result.folds) < settings.stop_folds:
        return False
    difference, error = mean_and_error(result.losses - best.losses[: len(result.folds)])
    return difference > settings.stop_errors * error


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "cross_validate.search 'optuna' needs the package optuna, which is not installed: "
            "pip install 'deep-remap[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: ModuleType, entry: Section) -> Any:
    kinds = optuna.distributions
    if entry["kind"] == "choice":  # as JSON, because a database keeps no tuples
        return kinds.CategoricalDistribution([json.dumps(value) for value in entry["values"]])
    kind = kinds.IntDistribution if entry["kind"] == "int" else kinds.FloatDistribution
    return kind(entry["low"], entry["high"], log=entry["log"])


def _candidate(number: int, params: Mapping[str, Any], space: Sequence[Section]) -> Candidate:
    choices = {entry["field"] for entry in space if entry["kind"] == "choice"}
    values = {k: tuples(json.loads(v)) if k in choices else v for k, v in params.items()}
    return Candidate(f"trial {number}", values)
