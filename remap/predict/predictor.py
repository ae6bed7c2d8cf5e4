"""Trained networks with all that belongs to them as one object: from spectra to a catalogue (paper §5, eq. 6)."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remap.config import ConfigError
from remap.pmf.calibration import Calibrates
from remap.predict.arms import ArmInputs, ArmPrediction, NormalizedArm
from remap.predict.catalogue import Catalogue, provenance
from remap.predict.combining import Combiner, combine, complete_arms
from remap.predict.ensemble import Network
from remap.predict.expert import GivesOpinions, References
from remap.predict.explain import Explanation, LibrarySpectra, explain, library_spectra
from remap.predict.given import spectra_of
from remap.predict.identity import describe_source
from remap.predict.observing import read_and_observe
from remap.predict.references import ComparesSpectra, Neighbors, ReferenceSet
from remap.predict.running import Runner
from remap.predict.treatment import FileVelocities, Reading, joined, make_reading, with_velocities
from remap.preprocess.description import Preprocessing
from remap.preprocess.observe import observe
from remap.preprocess.observe_settings import ObserveSettings, observe_settings
from remap.preprocess.observed import Observed, concatenate
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates
from remap.preprocess.velocity_choice import warn_of_velocities
from remap.spectra import Spectra
from remap.surveys import Survey

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Trained networks with the preprocessing that belongs to them. Make it with `remap.load`.

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

    @functools.cached_property
    def runner(self) -> Runner:
        """What runs the networks over spectra, in batches."""
        seen = dict(self.config.get("augment", {}))
        if self.description.get("stage") == "finetune":
            seen |= dict(self.config["finetune"].get("augment", {}))
        limits, gap = self.config["predict"], int(seen.get("gap_pixels", 0))
        return Runner(self.preprocessing, self.networks, limits, self.batch_size, gap)

    def predict_arm(self, arm: str, inputs: ArmInputs, *, embeddings: bool = False) -> ArmPrediction:
        """PMFs of one arm, the mean over its networks, in batches of one shape.

        Spectra without enough valid pixels (`predict.min_coverage`) are not used: their PMFs are NaN.

        Args:
          embeddings: give the pooled features of the arm's first network, too. Networks have spaces of their own, so
            that a mean over them would mean nothing.
        """
        return self.runner.predict_arm(
            arm, inputs, references=self.references, looks=self.known is not None, embeddings=embeddings
        )

    def reference_distances(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray | None:
        """float32[B, S, R]: of normalised spectra to the expert's references; None = there is no expert.

        Args:
          flux: float32[S, N] of `normalize_arm`.
          valid: bool[S, N].
        """
        if self.references is None:
            return None
        return self.runner.distances(arm, flux, valid, self.references)

    def normalize_arm(self, arm: str, inputs: ArmInputs) -> NormalizedArm:
        """Spectra of one arm as its networks take them, for more than one use: `predict_arm` keeps none."""
        return self.runner.normalize_arm(arm, inputs)

    def member_pmfs(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """PMFs of every network of one arm.

        Args:
          flux: float32[S, N] of `normalize_arm`.
          valid: bool[S, N].

        Returns:
          float32[M, L, S, K], in the order of `networks[arm].members`.
        """
        return self.runner.member_pmfs(arm, flux, valid)

    def member_embeddings(self, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """float32[M, L, S, F]: embeddings of every network of one arm; arguments as of `member_pmfs`."""
        return self.runner.member_outputs(arm, flux, valid)[1]

    def arm_prediction(
        self, arm: str, inputs: ArmInputs, pmf: np.ndarray, trouble: np.ndarray
    ) -> ArmPrediction:
        """PMFs float32[L, S, K] of spectra as a prediction: NaN where the arm has too few valid pixels."""
        return self.runner.arm_prediction(arm, inputs, pmf, trouble)

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
        known: ComparesSpectra | None = None,
    ) -> Catalogue:
        """The catalogue of the arms' predictions, combined as `predict.combine` says, pooled with the opinion of
        the expert if there is one, and then calibrated.

        Args:
          arms: one prediction per arm, all of the same S spectra. An arm that is not among them counts as one that
            no spectrum covers.
          names: S names, the catalogue's column `file`.
          messages: S reasons why a spectrum could not be used, "" elsewhere.
          star_ids: S identifiers, if known.
          observed: what the spectra were before: velocities and positions for the catalogue, and their flags.
          date: of the catalogue, ISO 8601; None = now.
          source: what the provenance is to say of where the spectra came from, JSON values.
          known: compares the spectra with the references; None = `Predictor.known`.

        Raises:
          ConfigError: no arm, or one that the networks do not have.
        """
        pixels = {arm: len(self.preprocessing.wave(arm)) for arm in self.networks}
        table, pmfs = combine(
            complete_arms(arms, pixels),
            names,
            self._combiner(known),
            messages=messages,
            star_ids=star_ids,
            observed=observed,
        )
        edges = {b.name: b.edges for b in self.preprocessing.labels}
        features = {arm: a.features for arm, a in arms.items() if a.features is not None}
        return Catalogue(table, pmfs, edges, self._provenance(len(names), date, source or {}), features)

    def _combiner(self, known: ComparesSpectra | None) -> Combiner:
        return Combiner(
            self.preprocessing.labels,
            self.config["predict"],
            self.prior,
            self.expert,
            self.calibration,
            known or self.known,
        )

    def _provenance(self, inputs: int, date: str | None, source: Mapping[str, Any]) -> dict[str, Any]:
        return provenance(
            config=self.config,
            checkpoint_step={arm: list(network.steps) for arm, network in self.networks.items()},
            date=date or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            inputs=inputs,
            stage=self.description.get("stage", ""),
            folds={arm: sorted(network.weights) for arm, network in self.networks.items()},
            weights=self.weights,
            calibration="none" if self.calibration is None else self.calibration_hash,
            expert="none" if self.expert is None else self.expert_hash,
            preprocessing_version=self.preprocessing.version,
            references="none" if self.known is None else self.known.provenance,
            **source,
        )

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
          velocities: radial velocity of each spectrum, in their order [km/s, or with a unit]; or "rest", "file" (for
            specutils: the spectrum's `radial_velocity`) or "measure" (see `ObserveSettings.velocity`); None = as the
            settings say.
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
          k: how many; None = as many as the catalogue has. No more than there are references are given.

        Returns:
          Label -> its neighbours, and those over all labels under "all".

        Raises:
          ConfigError: the working folder has no references, or k is below 1.
        """
        if k is not None and k < 1:
            raise ConfigError(f"expected one neighbour or more, found k = {k}")
        if self.known is None:
            raise ConfigError(
                "expected references to look for neighbours among, found none: run launch.references"
            )
        observed = self._observed(spectra, flux, medium, velocities, settings)
        found = {
            arm: self.predict_arm(arm, ArmInputs(on.flux, on.valid, on.snr))
            for arm, on in observed.arms.items()
        }
        used = np.stack([a.used for a in found.values()])
        k = None if k is None else min(k, len(self.known.names))
        return self.known.neighbors({arm: a.look for arm, a in found.items()}, used, k)

    def embed(
        self,
        spectra: Any,
        flux: Any = None,
        *,
        medium: str | None = None,
        velocities: Sequence[float] | np.ndarray | str | None = None,
        settings: ObserveSettings | None = None,
    ) -> dict[str, np.ndarray]:
        """The pooled features of every spectrum, those of each arm's first network (see `Catalogue.embeddings`).

        Args:
          spectra, flux, medium, velocities, settings: as `predict` takes them; or what `observe_files` gives.

        Returns:
          Arm -> float32[S, F]; NaN where the arm has too few valid pixels.
        """
        observed = self._observed(spectra, flux, medium, velocities, settings)
        found = self.predict_arms(observed, embeddings=True)
        return {arm: said.features for arm, said in found.items() if said.features is not None}

    def explain(
        self,
        spectra: Any,
        flux: Any = None,
        *,
        medium: str | None = None,
        velocities: Sequence[float] | np.ndarray | str | None = None,
        settings: ObserveSettings | None = None,
        library: LibrarySpectra | None = None,
    ) -> Explanation:
        """Where in the spectra the answers come from: continuum, saliency, and the library spectrum that fits best.

        Args:
          spectra, flux, medium, velocities, settings: as `predict` takes them; or what `observe_files` gives.
          library: to look in (`remap.predict.explain.library_spectra`); None = the templates of velocities, where the
            networks have some.

        Returns:
          Of every arm float[S, N]: flux, continuum, normalised flux, library spectrum, and the saliency of each
          label [L, S, N]; see `remap.predict.explain.explain`.
        """
        observed = self._observed(spectra, flux, medium, velocities, settings)
        table = self.predict_observed(observed).table
        labels = np.stack([np.asarray(table[name], float) for name in self.labels], axis=1)
        library = library or library_spectra(None, self.preprocessing, self.templates)
        inputs = {arm: ArmInputs(on.flux, on.valid, on.snr) for arm, on in observed.arms.items()}
        return explain(self.runner, inputs, labels=labels, library=library)

    def _observed(
        self,
        spectra: Any,
        flux: Any,
        medium: str | None,
        velocities: Sequence[float] | np.ndarray | str | None,
        settings: ObserveSettings | None,
    ) -> Observed:
        """Spectra as `predict` takes them on the arms' grids, or as they are where they are there already."""
        if isinstance(spectra, Observed):
            return spectra
        return self._observe(spectra_of(spectra, flux, medium=medium), velocities, settings)

    def _observe(
        self,
        files: list[list[Spectra]],
        velocities: Sequence[float] | np.ndarray | str | None,
        settings: ObserveSettings | None,
    ) -> Observed:
        """Spectra in memory on the arms' grids."""
        if not any(len(part) for file in files for part in file):
            raise ValueError("expected at least one spectrum, found none")
        settings = with_velocities(settings or self.observe_settings, velocities)
        given = None if velocities is None or isinstance(velocities, str) else velocities
        observed = observe(
            files, self.preprocessing, settings=settings, velocities=given, templates=self.templates
        )
        return joined(observed, self.preprocessing, settings, describe_source(settings))

    def predict_files(
        self,
        files: Iterable[str | Path],
        *,
        survey: Survey | str | None = None,
        source: Mapping[str, Any] | None = None,
        velocities: FileVelocities = None,
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
        velocities: FileVelocities = None,
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
        return joined(observed, self.preprocessing, how.settings, how.told)

    def reading(
        self,
        files: Sequence[Path],
        *,
        survey: Survey | str | None = None,
        source: Mapping[str, Any] | None = None,
        velocities: FileVelocities = None,
        settings: ObserveSettings | None = None,
        stationary: StationaryMask | None = None,
    ) -> Reading:
        """How `observe_files`, whose arguments these are, reads and treats files; reads none."""
        found = make_reading(
            files,
            self._own_reading,
            survey=survey,
            source=source,
            velocities=velocities,
            settings=settings,
            stationary=stationary,
        )
        if self.templates is None and found.settings.check:
            logger.warning("velocities are not checked: the working folder has no data/templates.npz")
        return found

    @property
    def _own_reading(self) -> Reading:
        return Reading(self.config["survey"]["source"], self.observe_settings, None, self.stationary, {})

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
