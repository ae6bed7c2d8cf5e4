"""Spectra whose kind is known, the labelled stars and a library, that others are compared with.

The folder `references` of a working folder holds their embeddings in the fine-tuned networks, their labels, their
normalised spectra and what `remap.predict.familiar` has learned; the stage that makes it is
`remap.stages.references`. It belongs to these networks, whose hashes it keeps.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from remap import sharding
from remap.config import ConfigError
from remap.network.resnet import bridge
from remap.pmf import distributions
from remap.predict.ensemble import Network
from remap.predict.familiar import Familiar, Sheets
from remap.predict.neighbors import nearest, unit_mean
from remap.preprocess.description import Preprocessing
from remap.store.atomic import file_hash, named, read_arrays, read_json, save_arrays, seal, unseal, write_json
from remap.store.workdir import check_preprocessing

logger = logging.getLogger(__name__)

ALL = "all"  # the key of neighbours over all labels together
_AGAIN = "run launch.references again, or leave them out (references=False, --noreferences)"
_bridge = jax.jit(bridge)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """Which spectra are kept to compare with (config section `references`).

    Attributes:
      library: random spectra of the libraries whose embeddings are kept, besides all labelled stars.
      spectra: of these, how many normalised spectra are kept, for the flag FAR and for reports.
      neighbors: of each spectrum in the catalogue, per label and over all labels together.
    """

    library: int = 4096
    spectra: int = 4096
    neighbors: int = 3

    def __post_init__(self) -> None:
        if self.library < 0 or self.spectra < 0 or self.neighbors < 1:
            raise ConfigError(
                "references: expected library >= 0, spectra >= 0 and neighbors >= 1, found "
                f"{self.library}, {self.spectra} and {self.neighbors}"
            )


class Look(NamedTuple):
    """What of one arm's spectra is compared with others."""

    embedding: np.ndarray  # float32[L, S, M·F], of all its networks, see `neighbors.unit_mean`
    flux: np.ndarray  # float32[S, N], normalised, straight lines over invalid pixels
    valid: np.ndarray  # bool[S, N]


class Neighbors(NamedTuple):
    """The k nearest references of T spectra, nearest first."""

    names: np.ndarray  # str[T, k], "" = there are no more
    distance: np.ndarray  # float32[T, k], 0 to 2; NaN = there are no more
    labels: np.ndarray  # float32[T, k, L], NaN = not known
    index: np.ndarray  # int64[T, k], which of the references, -1 = there are no more


class Comparison(NamedTuple):
    """What a catalogue gets of a comparison with the references."""

    columns: dict[str, tuple[np.ndarray, str, str]]  # name -> values, unit, description
    far: np.ndarray  # bool[S]


@runtime_checkable
class ComparesSpectra(Protocol):
    """What the combination of the arms asks of references."""

    def compare(
        self,
        looks: Mapping[str, Look],
        used: np.ndarray,
        pmfs: Mapping[str, np.ndarray],
        edges: Mapping[str, np.ndarray],
        units: Mapping[str, str],
    ) -> Comparison:
        """See `ReferenceSet.compare`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceSet:
    """References as the networks of one ensemble see them.

    Attributes:
      names: str[R], identifiers; stars first.
      labels: float32[R, L], NaN = not known.
      label_names: of the labels.
      star_ids: str[R], of the stars, "" for spectra of a library.
      embedding: arm -> float32[L, R, M·F], of the networks that predict.
      seen: arm -> bool[R], False where the arm does not cover a reference.
      sheets: normalised spectra of the first F references, float16.
      familiar: what tells spectra unlike all of them; None = nothing does.
      count: neighbours in a catalogue.
      digest: of the file.
    """

    names: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    star_ids: np.ndarray
    embedding: Mapping[str, np.ndarray]
    seen: Mapping[str, np.ndarray]
    sheets: Sheets
    familiar: Familiar | None
    count: int
    digest: str = ""

    @property
    def provenance(self) -> dict[str, Any]:
        """What a catalogue says of them, as JSON values."""
        far: Any = "not judged"
        if self.familiar is not None:
            f = self.familiar
            far = {
                "threshold": f.threshold,
                "rate": f.rate,
                "stars": f.stars,
                "use": [p.name for p in f.pools],
            }
        return {"sha256": self.digest, "count": len(self.names), "far": far}

    def spectra(self, index: int, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Arm -> float[N] of one reference, {} where it is not kept.

        Args:
          sizes: pixels of the arms, in their order.
        """
        if not 0 <= index < len(self.sheets.flux):
            return {}
        out, start = {}, 0
        for arm, size in sizes.items():
            some = slice(start, start + size)
            if self.sheets.valid[index, some].any():
                out[arm] = np.asarray(self.sheets.flux[index, some], float)
            start += size
        return out

    def neighbors(
        self,
        looks: Mapping[str, Look],
        used: np.ndarray,
        k: int | None = None,
        *,
        star_ids: Sequence[str] | None = None,
    ) -> dict[str, Neighbors]:
        """The nearest references of T spectra, by label and, under "all", over all labels together.

        A spectrum that lacks an arm is compared in the others, with references that have these. Squared distances are
        the mean of those of the arms and of their networks.

        Args:
          looks: of every arm.
          used: bool[A, T], whether an arm is used.
          k: None = `count`.
          star_ids: T identifiers; a star is not its own neighbour then.
        """
        k = self.count if k is None else k
        arms, count = tuple(looks), used.shape[1]
        index = np.full((len(self.label_names) + 1, count, k), -1, np.int64)
        distance = np.full(index.shape, np.nan, np.float32)
        own = None if star_ids is None else self.groups(star_ids)
        for pattern in np.unique(used, axis=1).T:
            rows = np.flatnonzero((used == pattern[:, None]).all(axis=0))
            mine = [arm for arm, here in zip(arms, pattern, strict=True) if here]
            if not mine:
                continue
            share = np.float32(1 / np.sqrt(len(mine)))
            found = nearest(
                np.concatenate([looks[arm].embedding[:, rows] for arm in mine], axis=2),
                [self.embedding[arm] for arm in mine],
                k,
                groups=None if own is None else (own[0][rows], own[1]),
                usable=np.all([self.seen[arm] for arm in mine], axis=0),
            )
            index[:, rows], distance[:, rows] = found.index, found.distance * share
        names = np.where(index >= 0, self.names[index], "")
        labels = np.where((index >= 0)[..., None], self.labels[index], np.nan)
        keys = (*self.label_names, ALL)
        return {key: Neighbors(names[i], distance[i], labels[i], index[i]) for i, key in enumerate(keys)}

    def groups(self, star_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int[T], int[R]: which spectra and references are of one star, -1 = of none."""
        known = {name: i for i, name in enumerate(dict.fromkeys(self.star_ids.tolist())) if name}
        query = np.array([known.get(str(name), -1) for name in star_ids], np.int32)
        return query, np.array([known.get(name, -1) for name in self.star_ids.tolist()], np.int32)

    def compare(
        self,
        looks: Mapping[str, Look],
        used: np.ndarray,
        pmfs: Mapping[str, np.ndarray],
        edges: Mapping[str, np.ndarray],
        units: Mapping[str, str],
        *,
        star_ids: Sequence[str] | None = None,
    ) -> Comparison:
        """Columns of a catalogue about neighbours and familiarity, and which spectra are far.

        Args:
          looks: of every arm.
          used: bool[A, S].
          pmfs: label -> float[S, K], combined.
          edges, units: of the labels.
          star_ids: S identifiers; stars are not compared with themselves then.
        """
        found = self.neighbors(looks, used, star_ids=star_ids)
        columns = self._neighbor_columns(found, units)
        for j, label in enumerate(self.label_names):
            summary = distributions.pmf_summary(np.asarray(pmfs[label]), edges[label])
            columns[f"{label}_near_pull"] = (
                pull(found[label].labels[:, :, j], summary),
                "",
                f"{label}: mean of the neighbours' values less the median, in half widths of the 68 % interval",
            )
        if self.familiar is None:
            return Comparison(columns, np.zeros(used.shape[1], bool))
        groups = None if star_ids is None else self.groups(star_ids)
        if groups is not None:
            groups = groups[0], groups[1][: len(self.sheets.flux)]
        judged = self.familiar.judge(side_by_side(looks, used), self.sheets, groups)
        words = f"how unlike all references; above {self.familiar.threshold:.3g} the flag FAR is set"
        columns["far"] = (judged.score, "", words)
        for i, arm in enumerate(looks):
            words = f"arm {arm}: reduced chi^2 of the best mixture of references"
            columns[f"misfit_{arm}"] = (judged.arms[i], "", words)
        return Comparison(columns, judged.far)

    def _neighbor_columns(
        self, found: Mapping[str, Neighbors], units: Mapping[str, str]
    ) -> dict[str, tuple[np.ndarray, str, str]]:
        columns: dict[str, tuple[np.ndarray, str, str]] = {}
        for i in range(self.count):
            near, name = found[ALL], f"near{i + 1}"
            what = f"neighbour {i + 1} over all labels"
            columns[name] = (near.names[:, i], "", f"{what}: identifier")
            columns[f"{name}_distance"] = (near.distance[:, i], "", f"{what}: distance of the embeddings")
            for j, label in enumerate(self.label_names):
                columns[f"{name}_{label}"] = (near.labels[:, i, j], units[label], f"{what}: its {label}")
        for j, label in enumerate(self.label_names):
            for i in range(self.count):
                near, name = found[label], f"{label}_near{i + 1}"
                what = f"neighbour {i + 1} in {label}"
                columns[name] = (near.names[:, i], "", f"{what}: identifier")
                columns[f"{name}_distance"] = (near.distance[:, i], "", f"{what}: distance of the embeddings")
                columns[f"{name}_value"] = (near.labels[:, i, j], units[label], f"{what}: its {label}")
        return columns


def pull(values: np.ndarray, summary: Mapping[str, np.ndarray]) -> np.ndarray:
    """float[S]: mean of the neighbours' labels float[S, k] less the median, over half the 68 % interval."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    mean = np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1)
    width = (summary["p84"] - summary["p16"]) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((count > 0) & (width > 0), (mean - summary["median"]) / width, np.nan)


def look_at(
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    embeddings: Float[Array, "members labels stars features"],
    count: int,
) -> Look:
    """What is compared of the first `count` normalised spectra of a batch."""
    return Look(
        unit_mean(sharding.to_host(embeddings)[:, :, :count]),
        sharding.to_host(_bridge(flux, valid))[:count],
        sharding.to_host(valid)[:count],
    )


def bridged(flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """float32[S, N]: normalised spectra with straight lines over invalid pixels."""
    return np.asarray(_bridge(flux, valid))


def join_looks(looks: Sequence[Look]) -> Look:
    """Of several batches one after the other."""
    embedding, flux, valid = zip(*looks, strict=True)
    return Look(np.concatenate(embedding, axis=1), np.concatenate(flux), np.concatenate(valid))


def side_by_side(looks: Mapping[str, Look], used: np.ndarray) -> Sheets:
    """Normalised spectra with all arms side by side; the pixels of arms that are not used bool[A, S] are invalid."""
    valid = [look.valid & here[:, None] for look, here in zip(looks.values(), used, strict=True)]
    return Sheets(
        np.concatenate([look.flux for look in looks.values()], axis=1), np.concatenate(valid, axis=1)
    )


def save_references(
    workdir: Path,
    references: ReferenceSet,
    members: Mapping[str, np.ndarray],
    networks: Mapping[str, Network],
    preprocessing: Preprocessing,
) -> None:
    """Writes references into a working folder.

    Args:
      members: arm -> float32[M, L, R, F], the embeddings of each network, so that fewer folds can be used later.
      networks: whose embeddings they are.
    """
    folder = workdir / "references"
    arrays = {f"embedding_{arm}": value for arm, value in members.items()}
    arrays |= {f"seen_{arm}": value for arm, value in references.seen.items()}
    if references.familiar is not None:
        arrays |= {f"far_{name}": value for name, value in references.familiar.arrays().items()}
    save_arrays(
        folder / "references.npz",
        names=np.asarray(references.names, str),
        star_ids=np.asarray(references.star_ids, str),
        labels=references.labels,
        flux=np.asarray(references.sheets.flux, np.float16),
        valid=references.sheets.valid,
        **arrays,
    )
    about = {
        "weights": {arm: {str(k): v for k, v in n.weights.items()} for arm, n in networks.items()},
        "folds": {arm: list(n.folds) for arm, n in networks.items()},
        "labels": list(references.label_names),
        "neighbors": references.count,
        "preprocessing": preprocessing.to_json(),
        "familiar": None if references.familiar is None else references.familiar.to_json(),
        "sha256": file_hash(folder / "references.npz"),
    }
    write_json(folder / "references.json", seal(about))


def read_references(
    workdir: Path, preprocessing: Preprocessing, networks: Mapping[str, Network]
) -> ReferenceSet | None:
    """The references of a working folder, known to be those of these networks; None where there are none.

    Args:
      networks: of the arms, fine-tuned; fewer folds than the references were made with are enough.

    Raises:
      ConfigError: they belong to other networks or another preprocessing (both values are named), a file is damaged
        or one of the two is missing.
    """
    folder = workdir / "references"
    if not (folder / "references.json").is_file():
        if (folder / "references.npz").is_file():
            raise ConfigError(
                f"{folder}: expected references.json beside references.npz, found none; {_AGAIN}"
            )
        logger.info(
            "%s: no references: no neighbours in the catalogue, and the flag FAR is never set", workdir
        )
        return None
    found = read_json(folder / "references.json", _AGAIN)
    with named(folder / "references.json", _AGAIN):
        found = unseal(found)
        weights, folds = found["weights"], found["folds"]
        labels, count, digest = tuple(found["labels"]), int(found["neighbors"]), str(found["sha256"])
        described = found["preprocessing"]
    for arm, network in networks.items():
        for fold, own in network.weights.items():
            theirs = weights.get(arm, {}).get(str(fold), "none")
            if theirs != own:
                raise ConfigError(
                    f"{folder}: references of other networks: arm {arm}, fold {fold}: expected {own}, found "
                    f"{theirs}; {_AGAIN}"
                )
    check_preprocessing(described, preprocessing.to_json(), str(folder))
    if not (folder / "references.npz").is_file() or file_hash(folder / "references.npz") != digest:
        raise ConfigError(f"{folder / 'references.npz'}: is not what launch.references wrote last; {_AGAIN}")
    names = ("names", "star_ids", "labels", "flux", "valid", *(f"embedding_{arm}" for arm in networks))
    a = read_arrays(folder / "references.npz", names, _AGAIN)
    with named(folder / "references.npz", _AGAIN):
        embedding = {}
        for arm, network in networks.items():
            # In the order of the networks, whose embeddings of a spectrum these are compared with.
            keep = [i for fold in network.weights for i in np.flatnonzero(np.array(folds[arm]) == fold)]
            embedding[arm] = unit_mean(a[f"embedding_{arm}"][keep])
        far = {name.removeprefix("far_"): value for name, value in a.items() if name.startswith("far_")}
        familiar = None if found["familiar"] is None else Familiar.from_json(found["familiar"], far)
        return ReferenceSet(
            a["names"],
            a["labels"],
            labels,
            a["star_ids"],
            embedding,
            {arm: a[f"seen_{arm}"] for arm in networks},
            Sheets(a["flux"], a["valid"]),
            familiar,
            count,
            digest,
        )
