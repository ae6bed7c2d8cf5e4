"""References for stars of the training: each star as the networks see it that did not train on it, never itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from remap.predict.neighbors import some_members
from remap.predict.references import Comparison, Look, ReferenceSet


@dataclasses.dataclass(frozen=True, eq=False)
class FoldReferences:
    """Compares stars of fold k in the networks of fold k alone, all others in those of all folds, none with itself.

    Attributes:
      everyone: the references, as the networks of all folds see them.
      members: arm -> the fold of each of its networks.
      fold_of_star: int[S], -1 = all folds.
      star_ids: S identifiers; references of the same star are not compared with, whichever spectrum of it they are.
    """

    everyone: ReferenceSet
    members: Mapping[str, Sequence[int]]
    fold_of_star: np.ndarray
    star_ids: Sequence[str]

    def compare(
        self,
        looks: Mapping[str, Look],
        used: np.ndarray,
        pmfs: Mapping[str, np.ndarray],
        edges: Mapping[str, np.ndarray],
        units: Mapping[str, str],
    ) -> Comparison:
        """See `ReferenceSet.compare`."""
        order, parts = [], []
        for fold in np.unique(self.fold_of_star):
            rows = np.flatnonzero(self.fold_of_star == fold)
            own = {arm: (np.array(folds) == fold) | (fold < 0) for arm, folds in self.members.items()}
            known = dataclasses.replace(
                self.everyone,
                embedding={arm: some_members(e, own[arm]) for arm, e in self.everyone.embedding.items()},
            )
            some = {
                arm: Look(some_members(x.embedding[:, rows], own[arm]), x.flux[rows], x.valid[rows])
                for arm, x in looks.items()
            }
            order.append(rows)
            parts.append(
                known.compare(
                    some,
                    used[:, rows],
                    {label: pmf[rows] for label, pmf in pmfs.items()},
                    edges,
                    units,
                    star_ids=[self.star_ids[row] for row in rows],
                )
            )
        place = np.argsort(np.concatenate(order))
        columns = {
            name: (np.concatenate([part.columns[name][0] for part in parts])[place], unit, words)
            for name, (_, unit, words) in parts[0].columns.items()
        }
        return Comparison(columns, np.concatenate([part.far for part in parts])[place])
