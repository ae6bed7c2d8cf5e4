"""From spectra to PMFs: the trained networks of a working folder as one object (paper §5, eq. 6)."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remap import io, sharding, surveys
from remap.config import ConfigError
from remap.continuum.normalizers import get_normalizer
from remap.pmf.calibration import Calibrates
from remap.pmf.distributions import (
    COMBINATIONS,
    arm_disagreement,
    combine_arms,
    count_modes,
    is_edge,
    is_near,
)
from remap.predict.catalogue import Catalogue, Flag, build_catalogue, provenance
from remap.predict.ensemble import (
    Network,
    mean_pmf,
    member_features,
    member_outputs,
    member_pmf,
    normalize,
    read_ensemble,
)
from remap.predict.expert import GivesOpinions, References
from remap.predict.expert_store import read_expert
from remap.predict.given import spectra_of
from remap.predict.identity import OwnCalibration, broken_arms, describe_source, read_own_calibration
from remap.predict.observing import read_and_observe
from remap.predict.references import Look, Neighbors, ReferenceSet, join_looks, look_at, read_references
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.preprocess.joining import join
from remap.preprocess.observe import (
    Observed,
    ObserveSettings,
    concatenate,
    observe,
    observe_settings,
    warn_of_velocities,
)
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates
from remap.spectra import Spectra
from remap.store.workdir import (
    load_stationary,
    load_templates,
    read_config,
    read_preprocessing,
)
from remap.surveys import Survey

logger = logging.getLogger(__name__)


class ArmInputs(NamedTuple):
    """Spectra on one arm's grid, before normalisation."""

    flux: np.ndarray  # float32[S, N]
    valid: np.ndarray  # bool[S, N]
    snr: np.ndarray  # float[S], NaN = unknown


class NormalizedArm(NamedTuple):
    """The same after normalisation."""

    flux: np.ndarray  # float32[S, N]
    trouble: np.ndarray  # bool[S], the normaliser raised a flag


class Reading(NamedTuple):
    """How the files of `Predictor.observe_files` are read and treated."""

    source: Mapping[str, Any]
    settings: ObserveSettings
    velocities: list[float] | None  # km/s, of every file; None = as the settings say
    stationary: StationaryMask | None
    told: dict[str, Any]  # of it, for the provenance


class ArmPrediction(NamedTuple):
    """What the networks of one arm say."""

    pmf: np.ndarray  # float32[L, S, K], mean over the networks; padded bins are 0
    used: np.ndarray  # bool[S], False where the arm has too few valid pixels
    coverage: np.ndarray  # float[S], valid fraction of the arm
    snr: np.ndarray  # float[S]
    trouble: np.ndarray  # bool[S], the normaliser raised a flag
    distances: np.ndarray | None = (
        None  # float32[B, S, R], to the expert's references; None = there is no expert
    )
    features: np.ndarray | None = None  # float32[S, F], NaN where not used; None = not asked for
    look: Look | None = None  # what is compared with the references of neighbours; None = there are none


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Trained networks with the preprocessing that belongs to them. Make it with `load`.

    Attributes:
      preprocessing: how inputs are made.
      networks: arm -> its networks.
      config: the settings recorded in the working folder.
      calibration: widens the combined PMFs; None = they stay as the networks give them.
      description: what the networks' trainings share (stage, config, split), as JSON values.
      templates: of the library, to measure velocities with; None = the folder has none.
      stationary: features of the survey's detector, masked in its spectra; None = none were looked for.
      expert: pools the combined PMFs with what labelled stars say; None = there is none.
      references: those stars, by which an expert judges.
      alone: as `calibration`, of the networks without the expert.
      known: spectra that neighbours are looked for among, and that the flag FAR is judged by; None = there are none.
      calibration_hash, expert_hash: of the files that `calibration` and `expert` were read from.
      batch_size: spectra of a batch; None = `predict.small_batch_size` for so few or fewer, else
        `predict.batch_size`.
    """

    preprocessing: Preprocessing
    networks: Mapping[str, Network]
    config: Mapping[str, Any]
    calibration: Calibrates | None = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    templates: Templates | None = None
    stationary: StationaryMask | None = None
    expert: GivesOpinions | None = None
    references: References | None = None
    alone: Calibrates | None = None
    calibration_hash: str = ""
    expert_hash: str = ""
    batch_size: int | None = None
    known: ReferenceSet | None = None

    @property
    def weights(self) -> dict[str, dict[str, str]]:
        """Arm -> fold ("-1" where the stage has none) -> hash of the network, as JSON values."""
        return {arm: {str(k): v for k, v in n.weights.items()} for arm, n in self.networks.items()}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return tuple(b.name for b in self.preprocessing.labels)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's PMFs in a catalogue, which are most of it."""
        return 4 * sum(b.bins for b in self.preprocessing.labels) * (1 + len(self.networks))

    def prior(self, label: int, bins: int) -> np.ndarray | None:
        """float64[K]: PMF of a label in training, mean over the arms; None where the networks do not know it."""
        priors = [n.prior for n in self.networks.values()]
        if any(p is None for p in priors):
            return None
        mean = np.mean([p[label, :bins] for p in priors], axis=0, dtype=np.float64)
        return mean / mean.sum()

    @property
    def observe_settings(self) -> ObserveSettings:
        """How observed spectra are treated: as the working folder's config says, else the defaults."""
        return observe_settings(self.config.get("observe", {}))

    def predict_arm(self, arm: str, inputs: ArmInputs, *, embeddings: bool = False) -> ArmPrediction:
        """PMFs of one arm, the mean over its networks, in batches of one shape.

        Spectra without enough valid pixels (`predict.min_coverage`) are not used: their PMFs are NaN.

        Args:
          embeddings: give the pooled features of the arm's first network, too. Networks have spaces of their own, so
            that a mean over them would mean nothing.
        """
        pmfs, troubles, distances, features, looks = [], [], [], [], []
        for flux, valid, count in self._batches(inputs.flux, inputs.valid):
            flux, trouble = self._normalize(arm, flux, valid)
            if self.known is None:
                members = self._pmfs(arm, flux, valid)
            else:
                members, embedded = self._outputs(arm, flux, valid)
                looks.append(look_at(flux, valid, embedded, count))
            pmfs.append(sharding.to_host(mean_pmf(members))[:, :count])
            troubles.append(sharding.to_host(trouble)[:count])
            if self.references is not None:
                distances.append(sharding.to_host(self.references.distances(arm, flux, valid))[:, :count])
            if embeddings:
                network = self.networks[arm]
                found = member_features(network.members[0], flux, valid, model=network.model)
                features.append(sharding.to_host(found)[:count])
        found = self.arm_prediction(inputs, np.concatenate(pmfs, axis=1), np.concatenate(troubles))
        if features:
            found = found._replace(
                features=np.where(found.used[:, None], np.concatenate(features), np.float32(np.nan))
            )
        found = found._replace(look=join_looks(looks)) if looks else found
        return found._replace(distances=np.concatenate(distances, axis=1)) if distances else found

    def reference_distances(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray | None:
        """float32[B, S, R]: of normalised spectra to the expert's references; None = there is no expert.

        Args:
          flux: float32[S, N] of `normalize_arm`.
          valid: bool[S, N].
        """
        if self.references is None:
            return None
        batches = self._batches(flux, valid)
        return np.concatenate(
            [
                sharding.to_host(self.references.distances(arm, flux, valid))[:, :count]
                for flux, valid, count in batches
            ],
            axis=1,
        )

    def normalize_arm(self, arm: str, inputs: ArmInputs) -> NormalizedArm:
        """Spectra of one arm as its networks take them, for more than one use: `predict_arm` keeps none."""
        fluxes, troubles = [], []
        for flux, valid, count in self._batches(inputs.flux, inputs.valid):
            flux, trouble = self._normalize(arm, flux, valid)
            fluxes.append(sharding.to_host(flux)[:count])
            troubles.append(sharding.to_host(trouble)[:count])
        return NormalizedArm(np.concatenate(fluxes), np.concatenate(troubles))

    def member_pmfs(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """PMFs of every network of one arm.

        Args:
          flux: float32[S, N] of `normalize_arm`.
          valid: bool[S, N].

        Returns:
          float32[M, L, S, K], in the order of `networks[arm].members`.
        """
        batches = self._batches(flux, valid)
        return np.concatenate(
            [sharding.to_host(self._pmfs(arm, flux, valid))[:, :, :count] for flux, valid, count in batches],
            axis=2,
        )

    def arm_prediction(self, inputs: ArmInputs, pmf: np.ndarray, trouble: np.ndarray) -> ArmPrediction:
        """PMFs float32[L, S, K] of spectra as a prediction: NaN where the arm has too few valid pixels."""
        used = usable(inputs.flux, inputs.valid, min_coverage=self.config["predict"]["min_coverage"])
        pmf = np.where(used[None, :, None], pmf, np.nan)
        return ArmPrediction(pmf, used, inputs.valid.mean(axis=1), inputs.snr, trouble)

    def _batches(
        self, flux: np.ndarray, valid: np.ndarray
    ) -> Iterator[tuple[Float[Array, "stars pixels"], Bool[Array, "stars pixels"], int]]:
        """Spectra in batches of one shape, the last one padded, each with how many of it are spectra.

        A batch is divided among the devices; where they would not have equal parts, it is as much larger.
        """
        limits = self.config["predict"]
        # Two shapes only, because the normaliser takes seconds to compile for each.
        few = len(flux) <= limits["small_batch_size"]
        batch = sharding.whole_batches(
            self.batch_size or (limits["small_batch_size"] if few else limits["batch_size"])
        )
        for i in range(0, len(flux), batch):
            count = min(batch, len(flux) - i)
            padding = ((0, batch - count), (0, 0))
            yield (
                sharding.divide(np.pad(flux[i : i + batch], padding, constant_values=1.0)),
                sharding.divide(np.pad(valid[i : i + batch], padding, constant_values=True)),
                count,
            )

    def _normalize(self, arm: str, flux: Array, valid: Array) -> tuple[Array, Array]:
        method = get_normalizer(self.preprocessing.continuum["name"])
        return normalize(flux, valid, method=method, settings=self.preprocessing.continuum_settings(arm))

    def _pmfs(self, arm: str, flux: Array, valid: Array) -> Float[Array, "members labels stars bins"]:
        model = self.networks[arm].model
        return jnp.stack([member_pmf(v, flux, valid, model=model) for v in self._members[arm]])

    @functools.cached_property
    def _members(self) -> dict[str, tuple[Any, ...]]:
        """The networks of every arm, on every device."""
        return {arm: sharding.replicate(network.members) for arm, network in self.networks.items()}

    def _outputs(self, arm: str, flux: Array, valid: Array) -> tuple[Array, Array]:
        """PMFs [M, L, S, K] and embeddings [M, L, S, F] of every network."""
        model = self.networks[arm].model
        found = [member_outputs(v, flux, valid, model=model) for v in self._members[arm]]
        return jnp.stack([pmf for pmf, _ in found]), jnp.stack([embedding for _, embedding in found])

    def member_embeddings(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """float32[M, L, S, F]: embeddings of every network of one arm; arguments as of `member_pmfs`."""
        batches = self._batches(flux, valid)
        return np.concatenate(
            [
                sharding.to_host(self._outputs(arm, flux, valid)[1])[:, :, :count]
                for flux, valid, count in batches
            ],
            axis=2,
        )

    def combine(
        self,
        arms: Mapping[str, ArmPrediction],
        names: Sequence[str],
        *,
        messages: Sequence[str] | None = None,
        star_ids: Sequence[str] | None = None,
        observed: Observed | None = None,
        date: str | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> Catalogue:
        """The catalogue of the arms' predictions, combined as `predict.combine` says, pooled with the opinion of
        the expert if there is one, and then calibrated.

        Args:
          arms: one prediction per arm, all of the same S spectra.
          names: S names, the catalogue's column `file`.
          messages: S reasons why a spectrum could not be used, "" elsewhere.
          star_ids: S identifiers, if known.
          observed: what the spectra were before: velocities and positions for the catalogue, and their flags.
          date: of the catalogue, ISO 8601; None = now.
          source: what the provenance is to say of where the spectra came from, JSON values.
        """
        limits = self.config["predict"]
        used = np.stack([a.used for a in arms.values()])
        reasons = np.array([""] * len(names) if messages is None else list(messages), dtype=object)
        broken, why = broken_arms({arm: (a.pmf, a.used) for arm, a in arms.items()})
        used, lost = used & ~broken, broken.any(axis=0)
        snr = mean_over_arms(np.stack([a.snr for a in arms.values()]), used)
        flags = self._arm_flags(arms, used, snr)
        pmfs: dict[Any, np.ndarray] = {}
        edges = {b.name: b.edges for b in self.preprocessing.labels}
        units = {b.name: b.unit for b in self.preprocessing.labels}
        joint = {}
        for j, b in enumerate(self.preprocessing.labels):
            single = np.stack([a.pmf[j][:, : b.bins] for a in arms.values()])
            single = np.where(broken[..., None], np.nan, single)
            joint[b.name] = combine_arms(
                np.where(used[..., None], single, np.nan),
                used,
                method=limits["combine"],
                prior=self.prior(j, b.bins),
            )
            pmfs |= {(b.name, arm): single[i] for i, arm in enumerate(arms)}
        if self.expert is not None:
            near = {arm: a.distances for arm, a in arms.items() if a.distances is not None}
            joint = self.expert.apply(joint, edges, used, near)
        if self.calibration is not None:
            known = [self.calibration.covers(label, joint, edges, used, tuple(arms)) for label in joint]
            flags[used.any(axis=0) & ~np.all(known, axis=0)] |= Flag.UNCALIBRATED
            joint = self.calibration.apply(joint, edges, used, tuple(arms), snr)
        for b in self.preprocessing.labels:
            single = np.stack([pmfs[b.name, arm] for arm in arms])
            flags |= self._pmf_flags(b.name, joint[b.name], single, b.edges, used)
        pmfs = {**joint, **pmfs}
        if observed is not None:
            flags[observed.coarse] |= Flag.RESOLUTION
            flags[observed.doubtful] |= Flag.VELOCITY
        joints = np.stack([np.isfinite(pmfs[b.name]).all(axis=1) for b in self.preprocessing.labels])
        if (gone := used.any(axis=0) & ~joints.all(axis=0)).any():
            for each in pmfs.values():
                each[gone] = np.nan
            why[gone], lost, used = "the combined PMF is not finite", lost | gone, used & ~gone
        unusable = ~used.any(axis=0)
        flags[unusable] = Flag.UNREADABLE
        flags[lost] |= Flag.NOT_FINITE
        if lost.any():
            some = ", ".join(names[i] for i in np.flatnonzero(lost)[:3])
            logger.warning(
                "%d spectra of which networks give no finite PMF are flagged: %s", lost.sum(), some
            )
        reasons[lost & (reasons == "")] = why[lost & (reasons == "")]
        reasons[unusable & (reasons == "")] = "no arm has enough valid pixels"
        more = {} if observed is None else _observed_columns(observed)
        if self.known is not None and all(a.look is not None for a in arms.values()):
            looks = {arm: a.look for arm, a in arms.items()}
            about = self.known.compare(looks, used, {k: pmfs[k] for k in edges}, edges, units)
            flags[about.far & ~unusable] |= Flag.FAR
            more |= about.columns
        table = build_catalogue(
            list(names),
            pmfs,
            edges,
            units=units,
            flags=flags,
            snr=snr,
            arms=dict(zip(arms, used, strict=True)),
            messages=list(reasons),
            star_ids=star_ids,
            more=more,
        )
        meta = provenance(
            config=self.config,
            checkpoint_step={arm: list(network.steps) for arm, network in self.networks.items()},
            date=date or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            inputs=len(names),
            stage=self.description.get("stage", ""),
            folds={arm: sorted(network.weights) for arm, network in self.networks.items()},
            weights=self.weights,
            calibration="none" if self.calibration is None else self.calibration_hash,
            expert="none" if self.expert is None else self.expert_hash,
            preprocessing_version=self.preprocessing.version,
            references="none" if self.known is None else self.known.provenance,
            **(source or {}),
        )
        features = {arm: a.features for arm, a in arms.items() if a.features is not None}
        return Catalogue(table, pmfs, edges, meta, features)

    def _arm_flags(self, arms: Mapping[str, ArmPrediction], used: np.ndarray, snr: np.ndarray) -> np.ndarray:
        """int32[S]: what the spectra themselves give reason to note."""
        limits, flags = self.config["predict"], np.zeros(len(snr), np.int32)
        coverage = np.stack([a.coverage for a in arms.values()])
        with np.errstate(invalid="ignore"):
            flags[snr < limits["min_snr"]] |= Flag.LOW_SNR
        flags[np.any(used & (coverage < limits["full_coverage"]), axis=0)] |= Flag.BAD_PIXELS
        flags[np.any(used & np.stack([a.trouble for a in arms.values()]), axis=0)] |= Flag.CONTINUUM
        flags[~used.all(axis=0)] |= Flag.MISSING_ARM
        return flags

    def _pmf_flags(
        self, label: str, joint: np.ndarray, single: np.ndarray, edges: np.ndarray, used: np.ndarray
    ) -> np.ndarray:
        """int32[S]: what the PMFs of one label, combined and per arm, give reason to note."""
        limits, flags = self.config["predict"], np.zeros(len(joint), np.int32)
        flags[is_edge(joint, bins=2, mass=limits["edge_mass"])] |= Flag.EDGE
        if label in (known := limits.get("range", {})):  # which older configs do not have
            flags[is_near(joint, edges, known[label], widths=limits["range_widths"])] |= Flag.EDGE
        flags[count_modes(joint, prominence=limits["mode_prominence"]) > 1] |= Flag.MULTIMODAL
        with np.errstate(invalid="ignore"):
            apart = arm_disagreement(single, edges, used) > limits["disagreement"]
        flags[apart] |= Flag.ARMS_DISAGREE
        return flags

    def predict(
        self,
        spectra: Any,
        flux: Any = None,
        *,
        medium: str | None = None,
        ivar: Any = None,
        valid: Any = None,
        names: Iterable[str] | None = None,
        velocities: Sequence[float] | np.ndarray | str | None = None,
        settings: ObserveSettings | None = None,
        embeddings: bool = False,
        date: str | None = None,
    ) -> Catalogue:
        """Stellar parameters of spectra in memory.

        Args:
          spectra: from `make_spectra`, one container or several on different grids; spectra as specutils has them
            (Spectrum, SpectrumList, SpectrumCollection); or wavelengths, with `flux`. A sequence among several
            holds the segments (arms, chips, orders, exposures) of one file.
          flux: float[N] or float[S, N], beside wavelengths float[N].
          medium: "air" or "vacuum", of all but `Spectra`, which say it.
          ivar, valid: beside `flux`, of its shape, see `make_spectra`.
          names: of the spectra; None = their own, or numbers.
          velocities: radial velocity of each spectrum, in their order [km/s]; or "rest", "file" (for specutils: the
            spectrum's `radial_velocity`) or "measure" (see `ObserveSettings.velocity`); None = as the settings say.
          settings: how they are treated; None = as the working folder's config says.
          embeddings: keep the pooled features, see `Catalogue.embeddings`.
          date: of the catalogue, ISO 8601; None = now.

        Returns:
          Table, PMFs, bin edges and provenance; a spectrum that cannot be used is a flagged row of NaNs.

        Raises:
          SpectrumError: what is no spectrum, or has no medium.
        """
        files = spectra_of(spectra, flux, medium=medium, ivar=ivar, valid=valid, names=names)
        observed = self._observe(files, velocities, settings)
        return self.predict_observed(observed, embeddings=embeddings, date=date)

    def neighbors(
        self,
        spectra: Any,
        k: int | None = None,
        *,
        flux: Any = None,
        medium: str | None = None,
        velocities: Sequence[float] | np.ndarray | str | None = None,
        settings: ObserveSettings | None = None,
    ) -> dict[str, Neighbors]:
        """The references that the networks find most alike, exactly, per label and over all labels together.

        Args:
          spectra, flux, medium, velocities, settings: as `predict` takes them; or what `observe_files` gives.
          k: how many; None = as many as the catalogue has.

        Returns:
          Label -> its neighbours, and those over all labels under "all".

        Raises:
          ConfigError: the working folder has no references.
        """
        if self.known is None:
            raise ConfigError(
                "expected references to look for neighbours among, found none: run launch.references"
            )
        observed = spectra
        if not isinstance(spectra, Observed):
            observed = self._observe(spectra_of(spectra, flux, medium=medium), velocities, settings)
        found = {
            arm: self.predict_arm(arm, ArmInputs(on.flux, on.valid, on.snr))
            for arm, on in observed.arms.items()
        }
        used = np.stack([a.used for a in found.values()])
        return self.known.neighbors({arm: a.look for arm, a in found.items()}, used, k)

    def _observe(
        self,
        files: list[list[Spectra]],
        velocities: Sequence[float] | np.ndarray | str | None,
        settings: ObserveSettings | None,
    ) -> Observed:
        """Spectra in memory on the arms' grids."""
        if not any(len(part) for file in files for part in file):
            raise ValueError("expected at least one spectrum, found none")
        settings = _with_velocities(settings or self.observe_settings, velocities)
        given = None if velocities is None or isinstance(velocities, str) else np.asarray(velocities, float)
        observed = observe(
            files, self.preprocessing, settings=settings, velocities=given, templates=self.templates
        )
        return self._joined(observed, settings, describe_source(settings))

    def predict_files(
        self,
        files: Iterable[str | Path],
        *,
        survey: Survey | str | None = None,
        source: Mapping[str, Any] | None = None,
        velocities: Mapping[str, float] | Sequence[float] | np.ndarray | str | None = None,
        settings: ObserveSettings | None = None,
        stationary: StationaryMask | None = None,
        embeddings: bool = False,
        date: str | None = None,
    ) -> Catalogue:
        """Stellar parameters of spectra in files: `predict_observed` of what `observe_files` finds.

        Args:
          files, survey, source, velocities, settings, stationary: see `observe_files`.
          embeddings: keep the pooled features, see `Catalogue.embeddings`.
          date: of the catalogue, ISO 8601; None = now.

        Returns:
          As `predict`. A file that cannot be read is a flagged row of NaNs, with the reason in `message`. Files of
          one star are one row where the settings say `join`, or where a survey is given that has identifiers.
        """
        observed = self.observe_files(
            files,
            survey=survey,
            source=source,
            velocities=velocities,
            settings=settings,
            stationary=stationary,
        )
        return self.predict_observed(observed, embeddings=embeddings, date=date)

    def observe_files(
        self,
        files: Iterable[str | Path],
        *,
        survey: Survey | str | None = None,
        source: Mapping[str, Any] | None = None,
        velocities: Mapping[str, float] | Sequence[float] | np.ndarray | str | None = None,
        settings: ObserveSettings | None = None,
        stationary: StationaryMask | None = None,
    ) -> Observed:
        """Spectra in files as the networks take them, one row per row of the catalogue.

        Args:
          files: any number, in any order, which is kept. They are read some at a time.
          survey: whose files they are, a name of `remap.surveys` or a record of one's own: says how they are read,
            and in which frame they are. None = as the survey of the config.
          source: how to read them (see `remap.io.read`), instead of or in addition to what the survey says.
          velocities: km/s, of each file in their order, or by the name of the file; or "rest", "file" or "measure"
            (see `ObserveSettings.velocity`). None = at rest where the survey is, else the file's own, else measured;
            without a survey as the settings say.
          settings: how the spectra are treated; None = as the working folder's config says.
          stationary: places of the detector that are masked, see `remap.preprocess.stationary`; None = those of the
            working folder, for its own survey.

        Returns:
          Joined where the settings say so; a file that cannot be read is a row without pixels, and a message.
        """
        files = [Path(file) for file in files]
        if not files:
            raise ValueError("expected at least one file, found none")
        how = self.reading(
            files,
            survey=survey,
            source=source,
            velocities=velocities,
            settings=settings,
            stationary=stationary,
        )
        observed = concatenate(
            read_and_observe(
                files,
                self.preprocessing,
                source=how.source,
                root=self.config["data_root"] or None,
                settings=how.settings,
                velocities=how.velocities,
                templates=self.templates,
                stationary=how.stationary,
            )
        )
        warn_of_velocities(observed, how.settings)
        return self._joined(observed, how.settings, how.told)

    def reading(
        self,
        files: Sequence[Path],
        *,
        survey: Survey | str | None = None,
        source: Mapping[str, Any] | None = None,
        velocities: Mapping[str, float] | Sequence[float] | np.ndarray | str | None = None,
        settings: ObserveSettings | None = None,
        stationary: StationaryMask | None = None,
    ) -> Reading:
        """How `observe_files`, whose arguments these are, reads and treats files; reads none."""
        own = settings or self.observe_settings
        if survey is not None:
            preset = surveys.get(survey) if isinstance(survey, str) else survey
            if settings is None:
                frame = "rest" if preset.frame == "rest" else "file"
                own = dataclasses.replace(own, velocity=frame, join=True, trust_width=False)
            source = preset.with_source(source or {}).source
        elif source is None:
            source = self.config["survey"]["source"]
        settings = _with_velocities(own, velocities)
        if self.templates is None and settings.check:
            logger.warning("velocities are not checked: the working folder has no data/templates.npz")
        if velocities is None or isinstance(velocities, str):
            given = None
        elif isinstance(velocities, Mapping):
            known = np.array([*velocities.values(), np.nan], float)  # -1, the last, is a file without one
            given = known[io.match_rows(list(velocities), files, where="velocities")].tolist()
        else:
            given = np.asarray(velocities, float).tolist()
            if len(given) != len(files):
                raise ConfigError(f"expected {len(files)} velocities, found {len(given)}")
        masked = self.stationary if stationary is None and survey is None else stationary
        told = describe_source(settings, survey, source, self.config["survey"]["source"])
        return Reading(source, settings, given, masked, told)

    def _joined(self, observed: Observed, settings: ObserveSettings, told: dict[str, Any]) -> Observed:
        joined = join(observed, self.preprocessing, settings=settings) if settings.join else observed
        return dataclasses.replace(joined, told=told)

    def without_expert(self) -> Predictor:
        """The networks alone, calibrated as such: an expert takes the ways of a spectrograph for those of stars.

        LAMOST's spectra differ from MILES's by more than one star of MILES from another of the same labels: with the
        expert log g of the same star scattered twice as much from visit to visit.
        """
        if self.expert is None:
            return self
        return dataclasses.replace(self, expert=None, references=None, calibration=self.alone, expert_hash="")

    def predict_observed(
        self, observed: Observed, *, embeddings: bool = False, date: str | None = None
    ) -> Catalogue:
        """Stellar parameters of spectra on the arms' grids, one row each.

        Args:
          observed: from `observe_files`. Spectra of a survey by name are those of another spectrograph and are
            predicted by the networks alone (`without_expert`).
          embeddings: keep the pooled features, see `Catalogue.embeddings`.
          date: of the catalogue, ISO 8601; None = now.
        """
        return self.combine_observed(self.predict_arms(observed, embeddings=embeddings), observed, date=date)

    def predict_arms(self, observed: Observed, *, embeddings: bool = False) -> dict[str, ArmPrediction]:
        """The first half of `predict_observed`: arm -> what its networks say."""
        own = self._for(observed)
        return {
            arm: own.predict_arm(arm, ArmInputs(on.flux, on.valid, on.snr), embeddings=embeddings)
            for arm, on in observed.arms.items()
        }

    def combine_observed(
        self, arms: Mapping[str, ArmPrediction], observed: Observed, *, date: str | None = None
    ) -> Catalogue:
        """The second half of `predict_observed`: the catalogue of what the networks say."""
        return self._for(observed).combine(
            arms,
            observed.names,
            messages=observed.messages,
            star_ids=observed.star_ids if any(observed.star_ids) else None,
            observed=observed,
            date=date,
            source=observed.told,
        )

    def _for(self, observed: Observed) -> Predictor:
        return self.without_expert() if observed.told.get("survey") else self


def load(
    workdir: str | Path,
    *,
    stage: str = "finetune",
    folds: Sequence[int] | None = None,
    calibrated: bool = True,
    expert: bool = True,
    references: bool = True,
) -> Predictor:
    """The trained networks of a working folder.

    Args:
      workdir: a folder in which the stages have run; nothing else is needed.
      stage: "finetune"; "pretrain" for the networks that saw no observed star, "align" for those that saw them
        without labels.
      folds: of the fine-tuned networks to use; None = all that were fine-tuned together, which must all be there.
      calibrated: use the calibration of the fine-tuned networks, where `launch.calibrate` has made one.
      expert: use the expert that stands beside them, where `launch.expert` has made one. False leaves it out, and the
        networks have a calibration of their own.
      references: use the spectra that `launch.references` has kept of the fine-tuned networks, where it has:
        neighbours in the catalogue, and the flag FAR.

    Raises:
      FileNotFoundError: the folder is missing or holds no finished network of this stage.
      ConfigError: the networks of the folds and arms are not of one training (two folders and both values are
        named), are damaged, or a fold is missing; they were trained with another preprocessing than the folder's
        (both values are named), or by another version of it; or the calibration belongs to other networks or
        folds, or is gone; the references belong to other networks.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    expected = read_preprocessing(workdir)
    if config["predict"]["combine"] not in COMBINATIONS:
        raise ConfigError(
            f"{workdir}: predict.combine must be one of {COMBINATIONS}, found {config['predict']['combine']!r}"
        )
    networks, description = read_ensemble(workdir, expected, stage, folds)
    beside = read_expert(workdir, expected, description) if stage == "finetune" and expert else None
    found = OwnCalibration(None, None, "")
    if stage == "finetune" and calibrated:
        found = read_own_calibration(
            workdir,
            networks,
            description,
            config["predict"]["combine"],
            expert=None if beside is None else beside.digest,
            alone=not expert,
        )
    known = None
    if stage == "finetune" and references:
        known = read_references(workdir, expected, networks)
    return Predictor(
        preprocessing=expected,
        networks=networks,
        config=config,
        calibration=found.calibration,
        description=description,
        templates=load_templates(workdir),
        stationary=load_stationary(workdir),
        expert=None if beside is None else beside.everyone,
        references=None if beside is None else beside.references,
        alone=found.alone,
        calibration_hash=found.digest,
        expert_hash="" if beside is None else beside.digest,
        known=known,
    )


def _with_velocities(settings: ObserveSettings, velocities: object) -> ObserveSettings:
    return dataclasses.replace(settings, velocity=velocities) if isinstance(velocities, str) else settings


def _observed_columns(observed: Observed) -> dict[str, tuple[np.ndarray, str, str]]:
    """Columns of the catalogue: name -> values, unit, description. Positions only where there are some."""
    columns = {
        "rv": (observed.velocity, "km/s", "radial velocity that was taken out; 0 = taken to be at rest"),
        "rv_err": (observed.velocity_error, "km/s", "its standard deviation, NaN = not known"),
    }
    for name, values in (("ra", observed.ra), ("dec", observed.dec)):
        if np.isfinite(values).any():
            columns[name] = (values, "deg", "position as the file says")
    if np.any(observed.inputs > 1):
        columns["exposures"] = (observed.inputs.astype(np.int32), "", "spectra that the row is made of")
    return columns


def mean_over_arms(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """float[S]: mean over the used arms of float[A, S], NaN without any."""
    keep = used & np.isfinite(values)
    count = keep.sum(axis=0)
    return np.where(count > 0, np.where(keep, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
