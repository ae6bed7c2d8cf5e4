"""The labelled stars as an expert of their own, beside the networks: what stars that look alike are labelled.

A network that is fine-tuned on a few hundred stars keeps mistakes that a regression on the same stars does
not make, and the other way round. So the stars themselves give a second opinion, a Gaussian process
(`remap.pmf.gaussian_process`) of how alike two stars are in three respects: their pixels, the features that
the pre-trained network finds in them, and the labels that it gives them. None of these has seen a label of a
star, so that the process knows how far it can be trusted. Its normal distribution and the networks' PMF are
pooled (`distributions.pool`) with powers that validation stars decide. A spectrum unlike all labelled stars
gets a wide opinion, and the networks' PMF stays. The stage that makes it is `remap.stages.expert`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remap.network.resnet import ResNet1D, bridge
from remap.pmf.distributions import mass_within, normal_pmf, pool
from remap.pmf.gaussian_process import Process, restore
from remap.predict.ensemble import Network

BLOCKS = ("pixels", "features", "labels")  # in what respects stars are compared
PMFs = Mapping[str, np.ndarray]  # by label
Distances = Mapping[str, np.ndarray]  # arm -> float32[B, T, S], squared, of T spectra to S references


class Block(NamedTuple):
    """One respect in which the references of one arm are compared, in units in which their total variance is 1."""

    values: np.ndarray  # float32[S, D], centred and scaled
    centre: np.ndarray  # float32[D]
    scale: np.ndarray  # float32[], in the unit of the input


@dataclasses.dataclass(frozen=True)
class References:
    """The labelled stars as their arms' networks see them.

    Attributes:
      networks: arm -> the pre-trained network, one member.
      blocks: arm -> a block for each of `BLOCKS`.
      edges: float32[L, K + 1], of the labels.
    """

    networks: Mapping[str, Network]
    blocks: Mapping[str, tuple[Block, ...]]
    edges: np.ndarray

    def distances(
        self, arm: str, flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]
    ) -> Float[Array, "blocks stars references"]:
        """Squared distances of normalised spectra of one arm to the references."""
        network = self.networks[arm]
        inputs = arm_inputs(network.members[0], flux, valid, jnp.asarray(self.edges), model=network.model)
        return jnp.stack([_distance(x, *block) for x, block in zip(inputs, self.blocks[arm], strict=True)])


def make_block(inputs: np.ndarray, used: np.ndarray) -> Block:
    """References float[S, D] as a block; those that are not `used` bool[S] have no part in centre and scale."""
    known = np.asarray(inputs[used], np.float64)
    centre = known.mean(axis=0)
    scale = np.sqrt(np.sum(known.var(axis=0)))
    scale = scale if scale > 0 else 1.0
    values = ((inputs - centre) / scale).astype(np.float32)
    return Block(values, centre.astype(np.float32), np.asarray(scale, np.float32))


@functools.partial(jax.jit, static_argnames=("model",))
def arm_inputs(
    variables: Any,
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    edges: Float[Array, "labels edges"],
    *,
    model: ResNet1D,
) -> tuple[Float[Array, "stars pixels"], Float[Array, "stars features"], Float[Array, "stars labels"]]:
    """What stars are compared in (`BLOCKS`): depth below the continuum, pooled features, mean labels (0 to 1)."""
    outputs, kept = model.apply(variables, flux, valid, train=False, running=True, mutable=["intermediates"])
    depth = bridge(flux, valid) - 1.0
    width = edges[:, -1:] - edges[:, :1]
    centre = (0.5 * (edges[:, 1:] + edges[:, :-1]) - edges[:, :1]) / width
    mean = jnp.einsum("lsk,lk->sl", jax.nn.softmax(outputs.logits), centre)
    return depth, kept["intermediates"]["features"][0], mean


@jax.jit
def _distance(
    inputs: Float[Array, "stars size"],
    values: Float[Array, "references size"],
    centre: Float[Array, " size"],
    scale: Float[Array, ""],
) -> Float[Array, "stars references"]:
    x = (inputs - centre[None]) / scale
    square = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(values**2, axis=1)[None]
    product = jnp.matmul(x, values.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(square - 2.0 * product, 0.0)


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What the stars say of one label, seen in one set of arms.

    Attributes:
      process: fitted to the references `rows`.
      rows: int[F], which of the references.
      powers: of the networks' PMF and of the process in the pool; (1, 0) leaves the networks' PMF.
      stars: validation stars that decided the powers.
    """

    process: Process
    rows: np.ndarray
    powers: tuple[float, float]
    stars: int

    def pmf(self, distances: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """float64[T, K]: normal distributions of the label, of spectra at distances float[B, T, S]."""
        mean, deviation = self.process.predict(list(distances[:, :, self.rows]))
        return normal_pmf(mean, deviation, edges)


@runtime_checkable
class GivesOpinions(Protocol):
    """What `Predictor` asks of an expert."""

    def apply(
        self, joint: PMFs, edges: PMFs, used: np.ndarray, distances: Distances
    ) -> dict[str, np.ndarray]:
        """PMFs float[T, K] by label, combined from the arms True in `used` bool[A, T], pooled with its own.

        Args:
          edges: float[K + 1] by label.
          distances: of the spectra to the references.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Expert:
    """Opinions by label and set of arms, the set written as names joined by +.

    Attributes:
      opinions: label -> set of arms -> opinion.
      known: label -> least and greatest value among the stars that it knows.
    """

    opinions: Mapping[str, Mapping[str, Opinion]]
    known: Mapping[str, tuple[float, float]]

    def apply(
        self, joint: PMFs, edges: PMFs, used: np.ndarray, distances: Distances
    ) -> dict[str, np.ndarray]:
        """See `GivesOpinions`; stars of a set of arms without an opinion, and rows of NaN, stay as they are."""
        out = {label: np.array(pmf, np.float64) for label, pmf in joint.items()}
        competence = self.competence(joint, edges)
        arms = tuple(distances)
        for label, found in self.opinions.items():
            for key, opinion in found.items():
                if opinion.powers == (1.0, 0.0):
                    continue
                member = np.array([arm in key.split("+") for arm in arms])
                rows = np.all(used == member[:, None], axis=0) & np.isfinite(out[label]).all(axis=1)
                rows &= competence > 0
                if rows.any():
                    own = opinion.pmf(joint_distances(distances, key, rows), edges[label])
                    powers = weighed(opinion.powers, competence[rows])
                    out[label][rows] = pool(out[label][rows], own, powers=powers)
        return out

    def competence(self, joint: PMFs, edges: PMFs) -> np.ndarray:
        """float64[T], 0 to 1: the networks' probability that a star is of a kind that the expert knows.

        A process of dwarfs takes a giant for an odd dwarf, and says so with confidence.
        """
        inside = [mass_within(joint[label], edges[label], *limits) for label, limits in self.known.items()]
        found = np.prod(inside, axis=0)
        return np.where(np.isfinite(found), found, 0.0)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, which `from_json` reads."""
        opinions = {
            label: {
                key: {
                    "process": o.process.to_json(),
                    "rows": o.rows.tolist(),
                    "powers": list(o.powers),
                    "stars": o.stars,
                }
                for key, o in found.items()
            }
            for label, found in self.opinions.items()
        }
        return {"opinions": opinions, "known": {label: list(limits) for label, limits in self.known.items()}}

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], distances: Distances, labels: Mapping[str, np.ndarray]
    ) -> Expert:
        """The expert that `to_json` wrote.

        Args:
          distances: of the references to each other.
          labels: per label float[S], of the references.
        """
        opinions: dict[str, dict[str, Opinion]] = {}
        for label, found in value["opinions"].items():
            opinions[label] = {}
            for key, one in found.items():
                rows = np.asarray(one["rows"], int)
                each = list(joint_distances(distances, key, rows)[:, :, rows])
                process = restore(one["process"], each, labels[label][rows])
                v, w = one["powers"]
                opinions[label][key] = Opinion(process, rows, (float(v), float(w)), int(one["stars"]))
        known = {label: (float(low), float(high)) for label, (low, high) in value["known"].items()}
        return cls(opinions, known)


@dataclasses.dataclass(frozen=True)
class FoldExpert:
    """Stars of fold k by `folds[k]`, all others by `default`: for reports on stars that took no part in it."""

    folds: Mapping[int, Expert]
    fold_of_star: np.ndarray  # int[T], -1 = none
    default: Expert

    def apply(
        self, joint: PMFs, edges: PMFs, used: np.ndarray, distances: Distances
    ) -> dict[str, np.ndarray]:
        """See `GivesOpinions`."""
        out = {label: np.array(pmf, np.float64) for label, pmf in joint.items()}
        for fold in np.unique(self.fold_of_star):
            rows = self.fold_of_star == fold
            expert = self.folds.get(int(fold), self.default)
            near = {arm: d[:, rows] for arm, d in distances.items()}
            part = expert.apply({k: v[rows] for k, v in out.items()}, edges, used[:, rows], near)
            for label, pmf in part.items():
                out[label][rows] = pmf
        return out


def weighed(powers: tuple[float, float], competence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Powers of both PMFs float[T] for a competence float[T]: as given for 1, the networks alone for 0."""
    v, w = powers
    return 1.0 + (v - 1.0) * competence, w * competence


def joint_distances(distances: Distances, key: str, rows: np.ndarray | Sequence[int]) -> np.ndarray:
    """float64[B, T', S]: mean over the arms of `key`, of the spectra `rows`."""
    return np.mean([np.asarray(distances[arm][:, rows], np.float64) for arm in key.split("+")], axis=0)
