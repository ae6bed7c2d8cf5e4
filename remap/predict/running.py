"""The networks of an ensemble run over any number of spectra, in batches of few shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remap import sharding
from remap.continuum.normalizers import get_normalizer
from remap.predict.arms import ArmInputs, ArmPrediction, NormalizedArm
from remap.predict.ensemble import (
    Network,
    mean_pmf,
    member_features,
    member_outputs,
    member_pmf,
    normalize,
)
from remap.predict.expert import References
from remap.predict.references import join_looks, look_at
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import longest_gap, usable

LONGEST_GAP = 1.0  # `predict.longest_gap` of older configs, which do not have it


@dataclasses.dataclass(frozen=True)
class Runner:
    """Networks, and how spectra go through them.

    Attributes:
      preprocessing: how inputs are made.
      networks: arm -> its networks.
      limits: the config's section `predict`.
      batch_size: spectra of a batch; None = `small_batch_size` of the limits for so few or fewer, else `batch_size`.
      gap_pixels: the longest masked stretches of the training; 0 = it had none.
    """

    preprocessing: Preprocessing
    networks: Mapping[str, Network]
    limits: Mapping[str, Any]
    batch_size: int | None = None
    gap_pixels: int = 0

    def predict_arm(
        self,
        arm: str,
        inputs: ArmInputs,
        *,
        references: References | None = None,
        looks: bool = False,
        embeddings: bool = False,
    ) -> ArmPrediction:
        """PMFs of one arm, the mean over its networks; NaN where the arm has too few valid pixels.

        Args:
          references: of an expert; the distances to them are given, too.
          looks: give what is compared with the references of neighbours.
          embeddings: give the pooled features of the arm's first network.
        """
        pmfs, troubles, distances, features, found_looks = [], [], [], [], []
        for flux, valid, count in self.batches(inputs.flux, inputs.valid):
            flux, trouble = self.normalize(arm, flux, valid)
            if looks:
                members, embedded = self._outputs(arm, flux, valid)
                found_looks.append(look_at(flux, valid, embedded, count))
            else:
                members = self.pmfs(arm, flux, valid)
            pmfs.append(sharding.to_host(mean_pmf(members))[:, :count])
            troubles.append(sharding.to_host(trouble)[:count])
            if references is not None:
                distances.append(sharding.to_host(references.distances(arm, flux, valid))[:, :count])
            if embeddings:
                network = self.networks[arm]
                found = member_features(network.members[0], flux, valid, model=network.model)
                features.append(sharding.to_host(found)[:count])
        found = self.arm_prediction(arm, inputs, np.concatenate(pmfs, axis=1), np.concatenate(troubles))
        if features:
            found = found._replace(
                features=np.where(found.used[:, None], np.concatenate(features), np.float32(np.nan))
            )
        found = found._replace(look=join_looks(found_looks)) if found_looks else found
        return found._replace(distances=np.concatenate(distances, axis=1)) if distances else found

    def arm_prediction(
        self, arm: str, inputs: ArmInputs, pmf: np.ndarray, trouble: np.ndarray
    ) -> ArmPrediction:
        """PMFs float32[L, S, K] of spectra as a prediction: NaN where the arm has too few valid pixels."""
        used = usable(inputs.flux, inputs.valid, min_coverage=self.limits["min_coverage"])
        pmf = np.where(used[None, :, None], pmf, np.nan)
        spread = np.median(self.preprocessing.fwhm(arm)) / self.preprocessing.arms[arm][2]
        # Stretches of the training join to longer ones.
        borne = max(self.limits.get("longest_gap", LONGEST_GAP) * spread, 2 * self.gap_pixels)
        gap = longest_gap(inputs.valid) / borne
        return ArmPrediction(pmf, used, inputs.valid.mean(axis=1), inputs.snr, trouble, gap=gap)

    def distances(self, arm: str, flux: np.ndarray, valid: np.ndarray, references: References) -> np.ndarray:
        """float32[B, S, R]: of normalised spectra float32[S, N] to an expert's references."""
        return np.concatenate(
            [
                sharding.to_host(references.distances(arm, flux, valid))[:, :count]
                for flux, valid, count in self.batches(flux, valid)
            ],
            axis=1,
        )

    def normalize_arm(self, arm: str, inputs: ArmInputs) -> NormalizedArm:
        """Spectra of one arm as its networks take them."""
        fluxes, troubles = [], []
        for flux, valid, count in self.batches(inputs.flux, inputs.valid):
            flux, trouble = self.normalize(arm, flux, valid)
            fluxes.append(sharding.to_host(flux)[:count])
            troubles.append(sharding.to_host(trouble)[:count])
        return NormalizedArm(np.concatenate(fluxes), np.concatenate(troubles))

    def member_pmfs(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """float32[M, L, S, K]: PMFs of every network of one arm, for normalised spectra float32[S, N]."""
        return np.concatenate(
            [
                sharding.to_host(self.pmfs(arm, flux, valid))[:, :, :count]
                for flux, valid, count in self.batches(flux, valid)
            ],
            axis=2,
        )

    def member_outputs(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `member_pmfs`, and float32[M, L, S, F]: the embeddings that the same run gives."""
        pmfs, embeddings = [], []
        for some, good, count in self.batches(flux, valid):
            pmf, embedding = self._outputs(arm, some, good)
            pmfs.append(sharding.to_host(pmf)[:, :, :count])
            embeddings.append(sharding.to_host(embedding)[:, :, :count])
        return np.concatenate(pmfs, axis=2), np.concatenate(embeddings, axis=2)

    def batches(
        self, flux: np.ndarray, valid: np.ndarray
    ) -> Iterator[tuple[Float[Array, "stars pixels"], Bool[Array, "stars pixels"], int]]:
        """Spectra in batches of one shape, the last one padded, each with how many of it are spectra.

        A batch is divided among the devices; where they would not have equal parts, it is as much larger.
        """
        # Two shapes only, because the normaliser takes seconds to compile for each.
        few = len(flux) <= self.limits["small_batch_size"]
        batch = sharding.whole_batches(
            self.batch_size or (self.limits["small_batch_size"] if few else self.limits["batch_size"])
        )
        for i in range(0, len(flux), batch):
            count = min(batch, len(flux) - i)
            padding = ((0, batch - count), (0, 0))
            yield (
                sharding.divide(np.pad(flux[i : i + batch], padding, constant_values=1.0)),
                sharding.divide(np.pad(valid[i : i + batch], padding, constant_values=True)),
                count,
            )

    def normalize(
        self, arm: str, flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]
    ) -> tuple[Float[Array, "stars pixels"], Bool[Array, " stars"]]:
        """One batch without its continuum, and where the normaliser raised a flag."""
        method = get_normalizer(self.preprocessing.continuum["name"])
        return normalize(flux, valid, method=method, settings=self.preprocessing.continuum_settings(arm))

    def pmfs(
        self, arm: str, flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]
    ) -> Float[Array, "members labels stars bins"]:
        """PMFs of every network of one arm, of one normalised batch."""
        model = self.networks[arm].model
        return jnp.stack([member_pmf(v, flux, valid, model=model) for v in self._members[arm]])

    def _outputs(self, arm: str, flux: Array, valid: Array) -> tuple[Array, Array]:
        """PMFs [M, L, S, K] and embeddings [M, L, S, F] of every network."""
        model = self.networks[arm].model
        found = [member_outputs(v, flux, valid, model=model) for v in self._members[arm]]
        return jnp.stack([pmf for pmf, _ in found]), jnp.stack([embedding for _, embedding in found])

    @functools.cached_property
    def _members(self) -> dict[str, tuple[Any, ...]]:
        """The networks of every arm, on every device."""
        return {arm: sharding.replicate(network.members) for arm, network in self.networks.items()}
