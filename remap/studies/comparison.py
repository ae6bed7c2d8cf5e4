"""Which of several settings is the best, by their losses on the same folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from remap.config import ConfigError


class Candidate(NamedTuple):
    """A setting to be compared with others."""

    name: str
    overrides: Mapping[str, Any]  # "section.field": value


class FoldLoss(NamedTuple):
    """What training without one fold gave."""

    loss: float  # of the fold; infinite if the training diverged
    parameters: int  # of one network
    seconds: float


class Result(NamedTuple):
    """The folds of a candidate, from the first on; fewer than the others' if it was stopped early."""

    candidate: Candidate
    folds: tuple[FoldLoss, ...]

    @property
    def losses(self) -> Float[np.ndarray, " folds"]:
        """The validation loss of each fold."""
        return np.array([fold.loss for fold in self.folds])

    def finished(self, folds: int) -> bool:
        """True if all of `folds` have a finite loss."""
        return len(self.folds) == folds and bool(np.isfinite(self.losses).all())


class Comparison(NamedTuple):
    """One row per candidate, and the names of two of them."""

    rows: list[dict[str, Any]]
    best: str  # least mean loss
    smallest: str  # fewest parameters of those within one standard error of the best


def mean_and_error(values: Float[np.ndarray, " folds"]) -> tuple[float, float]:
    """Mean and its standard error, sample standard deviation / sqrt(folds); the error of one value is NaN.

    The folds' training sets overlap, so that their losses are not independent and the error is somewhat small.
    """
    if not np.isfinite(values).all():
        return float("inf"), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def compare(results: Sequence[Result], folds: int) -> Comparison:
    """The candidates' mean losses, and their differences from the best, paired by fold.

    Candidates see the same folds, and a hard fold is hard for all: the spread of the paired differences, not that
    of the losses, says whether two of them differ. So "within one standard error" (Breiman et al. 1984, §3.4.3)
    is meant of the mean difference from the best.

    Args:
      results: at least one of them with all folds; the others get a row and are not chosen.
      folds: their number.

    Returns:
      Rows with name, folds, mean, std (over folds), error (of the mean), difference (mean loss minus that of the
      best, on the folds that the candidate has), difference_error, parameters, seconds (of all folds).

    Raises:
      ValueError: no candidate has finished.
    """
    finished = [r for r in results if r.finished(folds)]
    if not finished:
        names = [r.candidate.name for r in results]
        raise ConfigError(
            f"expected a candidate with a finite loss in all {folds} folds, found none of {names}"
        )
    best = min(finished, key=lambda r: r.losses.mean())
    rows, near = [], []
    for result in results:
        mean, error = mean_and_error(result.losses)
        difference, difference_error = mean_and_error(result.losses - best.losses[: len(result.folds)])
        if result.finished(folds) and difference <= difference_error:
            near.append(result)
        rows.append(
            {
                "name": result.candidate.name,
                "folds": int(np.isfinite(result.losses).sum()),
                "mean": mean,
                "std": error * float(np.sqrt(len(result.folds))),
                "error": error,
                "difference": difference,
                "difference_error": difference_error,
                "parameters": result.folds[0].parameters,
                "seconds": sum(fold.seconds for fold in result.folds),
            }
        )
    smallest = min(near, key=lambda r: (r.folds[0].parameters, r.losses.mean()))
    return Comparison(rows, best.candidate.name, smallest.candidate.name)
