"""Settings shared by all experiments: the paper's values, with every decision beyond its text named here.

Other configs start from `get_config()` and change what differs. Numbers in brackets are paper sections.
"""

import dataclasses
from typing import Any

import ml_collections

from remap import surveys
from remap.preprocess.cleaning import CleaningSettings
from remap.preprocess.stacking import StackSettings
from remap.preprocess.velocity_settings import VelocitySettings


def parse_arg(arg: str | None, **spec: bool) -> dict[str, bool]:
    """Reads a config argument such as `short` in `--config=configs/quickstart.py:short`.

    Args:
      arg: comma-separated names, or None.
      **spec: the names that the config knows, with their defaults.

    Raises:
      ValueError: an unknown name.
    """
    values = dict(spec)
    for name in filter(None, (arg or "").split(",")):
        if name not in spec:
            raise ValueError(f"unknown config argument {name!r}; this config knows {sorted(spec) or 'none'}")
        values[name] = True
    return values


# Fields of every section `library` that few need, see remap.stages.library.LibraryFiles.
ANY_LIBRARY: dict[str, Any] = {
    "exclude": (),  # nodes that are left out, by their names or labels
    "labels": {},  # where in the headers labels stand
    "labels_path": "",  # a table of labels,
    "labels_table": {},  # and how it is read
    "labels_from_name": "",  # a pattern of the files' names
}


def bundle_library(
    path: str, *, columns: tuple[str, ...] = ("teff", "logg", "m_h", "vmic"), absolute: bool = True
) -> dict[str, Any]:
    """Section `library`: one file of `remap.io.write_bundle`, wavelengths in air, not broadened.

    Args:
      path: of the file, under the data root.
      columns: labels of its spectra.
      absolute: see `remap.io.bundle`.
    """
    return {
        "path": path,
        "patterns": ("*.npz",),
        "source": {"format": "bundle", "medium": "air", "absolute": absolute, "label_columns": columns},
        "native": {"kind": "sharp", "value": 0.0},
        "interpolate": True,
        "select": {},  # limits of labels, any that the library has
        **ANY_LIBRARY,
    }


def phoenix_library(*, interpolate: bool) -> dict[str, Any]:
    """Section `library`: PHOENIX-ACES HiRes files and their WAVE file in `phoenix/hires`, scaled-solar models only.

    Args:
      interpolate: True draws spectra between the nodes as well.
    """
    return {
        "path": "phoenix/hires",
        "patterns": ("lte*HiRes.fits",),
        "source": {
            "format": "phoenix_hires",
            "medium": "vacuum",
            "wave_unit": "Angstrom",
            "wave_path": "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits",
        },
        "native": {"kind": "resolution", "value": 500000.0},
        "interpolate": interpolate,
        "select": {"alpha": (-0.01, 0.01)},
        **ANY_LIBRARY,
    }


def further_library(section: dict[str, Any], *, weight: float) -> dict[str, Any]:
    """A section of `libraries`, from one that would do as `library`, whose `interpolate` is for all of them.

    Args:
      weight: share of the drawn spectra that come from it.
    """
    return {k: v for k, v in section.items() if k != "interpolate"} | {"weight": weight}


def fgk_libraries(c: ml_collections.ConfigDict) -> None:
    """Two libraries, half of the spectra from each, and bins that reach beyond the nodes of both.

    They have line data and codes of their own: what a network learns of both is sure of neither's mistakes. The
    bins reach farther, so that an answer at the end of the libraries is not one in an outermost bin.
    """
    c.library = bundle_library("lte_grid.npz")
    cool = bundle_library("coolstars_grid.npz", columns=("teff", "logg", "m_h"), absolute=False)
    c.libraries.coolstars = further_library(cool, weight=0.5)
    c.labels.teff.update({"low": 3600.0, "high": 7600.0, "bins": 60})
    c.labels.logg.update({"low": -0.2, "high": 5.5, "bins": 38})
    c.labels.feh.update({"low": -2.7, "high": 0.7, "bins": 68})
    c.labels.teff.library_sigma = (
        50.0  # the libraries' steps are 250 K, 0.5 and 0.5 dex; σ = step / 5 (§5 iii)
    )


def survey(
    folder: str, source: dict[str, Any], labels: tuple[str, ...], errors: tuple[str, ...] | None = None
) -> ml_collections.ConfigDict:
    """Section `survey`: FITS files in FOLDER/spectra and their stars in FOLDER/labels.ecsv (columns file, star_id).

    Args:
      folder: under the data root.
      source: how a file is read.
      labels: columns with labels.
      errors: labels that have a column LABEL_err; None = all.
    """
    found = {
        "path": f"{folder}/spectra",
        "patterns": ("*.fits",),
        "source": source,
        "labels_path": f"{folder}/labels.ecsv",
        "labels": {
            "format": "ecsv",
            "columns": {name: name for name in labels},
            "error_columns": {name: f"{name}_err" for name in (labels if errors is None else errors)},
            "file_column": "file",
            "id_column": "star_id",
        },
    }
    return ml_collections.ConfigDict(found)


def known_survey(
    name: str, folder: str, labels: tuple[str, ...], *, errors: tuple[str, ...] | None = None, **source: Any
) -> ml_collections.ConfigDict:
    """As `survey`, of files as a survey of `remap.surveys` delivers them.

    Args:
      name: of the survey, see docs/surveys.md.
      source: what is declared otherwise than there, for example line_spread={"resolution": 2000.0}.
    """
    known = surveys.get(name).with_source(source)
    section = survey(folder, dict(known.source), labels, errors)
    section.patterns = known.patterns
    return section


def fits_table_survey(
    folder: str, labels: tuple[str, ...], *, errors: tuple[str, ...] | None = None, medium: str = "air"
) -> ml_collections.ConfigDict:
    """As `survey`, of FITS tables with columns wavelength [Å, in `medium`], flux and ivar."""
    source = {
        "format": "table",
        "medium": medium,
        "axis": "linear",
        "wave_unit": "Angstrom",
        "wave_column": "wavelength",
        "flux_column": "flux",
        "ivar_column": "ivar",
    }
    return survey(folder, source, labels, errors)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The shared settings; on its own it names no data."""
    parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.name = "common"
    c.seed = 0
    c.data_root = ""  # folder of the data; "" = $REMAP_DATA

    # How observed spectra are treated before the networks see them (remap.preprocess.observe). `velocity`: "rest",
    # "file" (what the file says; measured where it does not) or "measure" (cross-correlation with the library); a
    # column of velocities in the table of labels comes first. `join` makes one row of the spectra of a star.
    c.observe = {
        "velocity": "rest",
        "check": True,  # tell where measured velocities contradict what is used,
        "tolerance": 20.0,  # km/s, by more than this
        "coarser": 0.25,  # how much wider lines may be than the networks know them, a fraction
        "sharper": 8.0,  # pixels per line beyond which lines of unknown width are taken to be too sharp
        "trust_width": True,  # False flags all spectra that do not say how wide their lines are
        "join": False,
        "radius": 5.0,  # arcsec; one identifier farther apart than this is not one star
        "bad_pixels": True,  # mask exact zeros and absurd values
        "cosmic_rays": True,  # mask what is narrower than a line can be, or in one exposure alone
        "stationary": False,  # mask what stands still on the detector, found when the survey is prepared
        "cleaning": dataclasses.asdict(CleaningSettings()),
        "cross_correlation": dataclasses.asdict(VelocitySettings()),
        "stacking": dataclasses.asdict(StackSettings()),
    }

    # launch.fetch_library: the part of PHOENIX-ACES HiRes that is fetched, into `folder` or, where that is "",
    # into `library.path`. Ranges: (low, high), both included; () = what bins and `library.select` have in common.
    c.fetch = {
        "url": "https://phoenix.astro.physik.uni-goettingen.de/data/HiResFITS/",  # or a mirror's
        "folder": "",
        "teff": (),
        "logg": (),
        "feh": (),
        "alpha": (),
        "connections": 4,  # files at a time
        "retries": 5,  # attempts that may fail in a row without a new byte
        "timeout": 30.0,  # s
        "backoff": 1.0,  # s before the first of them, doubled for each further one
        "slowest": 1000.0,  # bytes/s, below which a connection is given up and begun anew
        "largest": 100_000_000,  # bytes of a file
        "give_up": 20,  # failures in a row after which no more files are asked for
        "progress": 10.0,  # s between two messages
        "ask_again": False,  # True: also for files that the server did not have
        "verify": False,  # True: read all files that are there again
    }

    # Labels (§5 i-iii): bins as wide as the median uncertainty of the calibration stars. `library_sigma` is
    # the library's grid step / 5; `error` is used for observed labels that come without one.
    c.label_names = ("teff", "logg", "feh")
    c.labels = {
        "teff": {
            "low": 3000.0,
            "high": 7000.0,
            "bins": 50,
            "unit": "K",
            "library_sigma": 20.0,
            "error": 80.0,
        },
        "logg": {"low": 1.0, "high": 5.5, "bins": 30, "unit": "dex", "library_sigma": 0.1, "error": 0.15},
        "feh": {"low": -2.0, "high": 1.0, "bins": 60, "unit": "dex", "library_sigma": 0.1, "error": 0.05},
    }

    # Further libraries by their names, each as `library` and with its share of the draws (`further_library`).
    c.libraries = ml_collections.ConfigDict()

    # Arms: one wavelength grid and one network each [Å, in `grid_medium`].
    c.grid_medium = "air"
    c.arm_names = ("A", "B")
    c.arms = {
        "A": {"start": 4850.0, "stop": 5280.0, "step": 0.1},
        "B": {"start": 5280.0, "stop": 5750.0, "step": 0.1},
    }

    # Line spread given to the library (§3.3 i): "resolution" (λ/FWHM) or "fwhm" [Å]; one copy per value.
    c.lsf = ml_collections.ConfigDict({"kind": "resolution", "values": (10000.0, 11000.0, 12000.0)})

    # The normaliser by name (remap.continuum.normalizers) and all of its settings; for Algorithm 1 see
    # remap.continuum.ContinuumSettings. `exceed` and `snr` 0 = the rule max(2, round(0.05 N / 11)).
    c.continuum = {
        "name": "algorithm1",
        "exceed": 0,
        "snr": 0.0,
        "ratio": 0.999,
        "bins": (2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
        "relift": 1.05,
        "max_steps": 9206,
        "degree": 6,
        "sigma": 15.0,  # Å: the paper's 150 pixels of 0.1 Å
    }

    # Noise of training spectra (§3.3 iii), as a fraction of the flux, and, with `kind` "online" only, what the
    # paper does not have, each off at 0 (remap.sampling.augment.AugmentSettings): residual radial velocity,
    # scattered light, tilt of the continuum, runs of invalid pixels.
    effects = {"velocity": 0.0, "scattered": 0.0, "tilt": 0.0, "gaps": 0, "gap_pixels": 0}
    c.augment = {
        "kind": "online",
        "noise_low": 0.005,
        "noise_high": 0.02,
        "noise_law": "uniform",
        "levels": 5,
    }
    c.augment.update({"draws": 3, **effects})
    # Of library spectra alone, off as well: line strengths off by so many times the difference of the config's
    # libraries, together in so many components and each by itself; a smooth random factor on all depths; [α/Fe],
    # (low, high) [dex], with a scatter about the Galaxy's trend or, at 0, evenly (remap.sampling.nuisances).
    c.augment.update({"lines": 0.0, "lines_each": 0.0, "lines_components": 24, "depths": 0.0})
    c.augment.update({"alpha": (), "alpha_scatter": 0.0})

    # Network (fig. 1). The paper leaves widths and depth to cross-validation.
    c.model = {
        "stem_filters": 16,
        "stem_kernel": 7,
        "stem_stride": 1,
        "filters": (16, 32, 64, 128),
        "kernel": 5,
        "dropout": 0.1,
        "embedding": 32,
        "activation": "mish",
        "pooling": "avg_max",
        "place_filters": 0,
        "validity_channel": True,
        "masked": "bridged",  # or "told", for networks that see masks in training (`augment.gaps`)
        "temperature": True,  # learned, per label (§4.5)
        "batch_norm_momentum": 0.9,
    }

    # Loss (§4.3-4.4, eq. 7). The cost weight κ is not in the paper; 1 weighs the cost vector like the rest.
    # `label_weights`: of each label in the sum, in their order; () = 1 for all. A head of weight 0 learns nothing.
    c.loss = {
        "gamma": 2.0,
        "cost_weight": 1.0,
        "triplet_weight": 0.001,
        "margin": 0.2,
        "label_weights": (),
    }

    # Pre-training (§5): 4 cycles of 30 epochs, 1e-3 to 1e-5. `epoch_size` = spectra drawn per epoch; 0 = as
    # many as the paper's fixed set has (`augment`). `average`: "swa" (eq. 5), "last" (none), "best" (mean over
    # as many cycles as the validation loss asks for) or "snapshots" (the cycles' ends as an ensemble).
    c.pretrain = {
        "batch_size": 128,
        "epoch_size": 110000,
        "cycles": 4,
        "epochs_per_cycle": 30,
        "rate_high": 1e-3,
        "rate_low": 1e-5,
        "clip_norm": 1.0,
        "checkpoint_epochs": 5,
        "keep": 2,
        "average": "swa",
        "stats_batches": 50,
        "validation": 0.05,  # fraction of the library's cells (or nodes) held out for the validation loss
        "validation_size": 512,  # spectra in the fixed validation batch
    }

    # For figs. 2 and 3 (launch.visualize): after which epochs of pre-training the embeddings of `size` training and
    # as many held-out spectra are saved (paper: 0, 25, 50), and t-SNE's perplexity. Not part of what a network
    # is: a finished one is left as it is, whatever is asked for here.
    c.embeddings = {"epochs": (), "size": 500, "perplexity": 30.0}

    # The range test of §4.6: the rate rises from `low` to `high`; limits are margin × the rate of least loss, and
    # that over `span` (paper: two orders of magnitude).
    c.find_lr = {
        "low": 1e-6,
        "high": 1.0,
        "steps": 400,
        "smoothing": 0.95,
        "diverged": 2.0,
        "margin": 0.5,
        "span": 100.0,
    }

    # Cross-validation of settings (remap.studies.cross_validate); what follows compares widths and depths of the
    # network in 5 candidates × 10 folds × 10 epochs for each arm, against the 120 epochs of pre-training.
    c.cross_validate = {
        "stage": "pretrain",  # folds of the library's cells; or "finetune": folds of the labelled stars
        "folds": 10,
        "fold": 0,  # in "finetune": the test stars of this fold of `split` have no part; -1 = all stars have
        "cycles": 2,  # the length of every training
        "epochs_per_cycle": 5,
        "choose": "best",  # or "smallest": fewest parameters within one standard error of the best
        "search": "candidates",  # or "optuna"
        "candidates": (
            {"name": "8x3", "model.stem_filters": 8, "model.filters": (8, 16, 32)},
            {"name": "16x3", "model.stem_filters": 16, "model.filters": (16, 32, 64)},
            {"name": "16x4", "model.stem_filters": 16, "model.filters": (16, 32, 64, 128)},
            {"name": "16x8", "model.stem_filters": 16, "model.filters": (16, 16, 32, 32, 64, 64, 128, 128)},
            {"name": "32x4", "model.stem_filters": 32, "model.filters": (32, 64, 128, 256)},
        ),
        "optuna": {
            "trials": 30,
            "startup": 10,  # drawn at random
            # A trial is stopped after `stop_folds` or more folds if it is worse than the best one by more than
            # `stop_errors` standard errors of their difference, paired by fold.
            "stop_folds": 3,
            "stop_errors": 3.0,
            "space": (
                {
                    "field": "model.filters",
                    "kind": "choice",
                    "values": ((8, 16, 32), (16, 32, 64), (16, 32, 64, 128), (32, 64, 128, 256)),
                },
                {"field": "model.stem_filters", "kind": "int", "low": 8, "high": 32, "log": True},
                {"field": "model.kernel", "kind": "choice", "values": (3, 5, 7)},
                {"field": "model.dropout", "kind": "float", "low": 0.0, "high": 0.3, "log": False},
                {"field": "pretrain.rate_high", "kind": "float", "low": 3e-4, "high": 3e-2, "log": True},
            ),
        },
    }

    # Between the two (remap.stages.align), not in the paper: features of the survey's spectra, without their labels,
    # pulled to those of library spectra. `kind`: "none" (no such stage), "mmd", "coral" or "autoencoder". `match`
    # compares the stars with library spectra from the cells that the pre-trained network puts them in. An epoch has
    # as many steps as one of pre-training.
    c.align = {
        "kind": "none",
        "weight": 30.0,  # for "mmd"; benchmarks/bench_gap.py has 100 for "coral" and 3 for "autoencoder"
        "match": True,
        "decoder": 128,  # hidden units, "autoencoder" alone
        "batch_size": 64,  # spectra of the library, of the stars' cells, and of stars, each
        "scale_batches": 8,  # of the stars' cells, that give the units of the features
        "floor": 1e-3,  # least variance of a feature in those units, as a fraction of the largest
        "validation": 0.2,  # fraction of the stars kept aside, whose alignment is logged
        "stars": 20000,  # spectra at most, drawn at random, and half as many kept aside
        "chunk": 64,  # spectra that are normalised at a time
        "cycles": 1,
        "epochs_per_cycle": 10,
        "rate_high": 1e-3,
        "rate_low": 1e-5,
        "clip_norm": 1.0,
        "checkpoint_epochs": 5,
        "keep": 1,
    }

    # Fine-tuning (§5 i-ii): both limits of the rate × 1/10 for the heads, graded below them.
    c.finetune = {
        "init": "pretrained",  # or "scratch"
        "layer_rates": "graded",  # or "uniform", "heads"
        "rate_factor": 0.1,
        "rehearsal": 0.0,  # fraction of every batch that is drawn from the library (paper: none)
        "rehearsal_augment": {},  # what differs from `augment` for these spectra
        # "linear": the library of the rehearsal is multiplied by the stars' observed / synthetic flux, per pixel
        # linear in the labels (remap.sampling.correction); `correction_ridge` in units of one star's weight. The
        # stars' residuals, up to `residual_clip` in log flux, times U(residual_weight) are noise on its spectra.
        "correction": "none",
        "correction_ridge": 10.0,
        "residual_weight": (0.0, 0.0),
        "residual_clip": 0.3,
        # Fraction of every batch that is drawn from the survey's spectra of stars that are not selected. Their
        # labels are not used: what the pre-trained network says of them, in the labels of `anchor`, is the target,
        # so that stars of kinds without labelled examples are not forgotten (paper: none).
        "unlabelled": 0.0,
        "anchor": (),
        # "paired": half of the stars of a batch share a bin with one of the others, for the triplets.
        "batches": "random",
        # Normalise with the pre-trained running statistics instead of those of each batch: few stars of one
        # kind have other statistics than the library, and heads at a tenth of the rate cannot follow.
        "freeze_stats": True,
        "batch_size": 64,
        "cycles": 4,
        "epochs_per_cycle": 30,
        "rate_high": 1e-3,
        "rate_low": 1e-5,
        "clip_norm": 1.0,
        "checkpoint_epochs": 30,
        "keep": 1,
        "average": "swa",
        "stats_batches": 20,
        "noise_low": 0.0,  # extra noise on observed spectra, as a fraction of the flux
        "noise_high": 0.0,
        "augment": dict(effects),  # of observed spectra; those of the rehearsal have c.augment
        # Limits of the labels of stars that may be trained on; others with labels are kept for the report.
        "select": {"logg": (3.5, 5.5)},
    }

    # Splits are by star. Every fold in `run` gets a network; new spectra are given the mean of their PMFs.
    c.split = {"folds": 5, "run": (0, 1, 2, 3, 4), "validation": 0.1}

    # Beside the fine-tuned networks (remap.stages.expert), not in the paper: Gaussian processes of the labelled stars
    # themselves, by pixels, features and labels of the pre-trained network, pooled with the networks' PMFs with
    # powers that the validation stars decide. "gaussian_process", or "none".
    c.expert = {
        "kind": "none",
        "prior": 2.0,  # width of the priors on ln amplitude, length and scatter
        "scatter": 0.2,  # centre of that on the scatter, in units of the labels' standard deviation
        "iterations": 60,
        "clip": 4.0,  # standard deviations by which a wrong label misses what the other stars say
        "power_sigma": 1.0,
        "outliers": 0.05,
        "outliers_sigma": 1.5,
        "outliers_breadth": 5.0,
        "min_stars": 20,
    }

    # After fine-tuning: how wide the combined PMFs are to be (remap.pmf.calibration), fitted on the validation stars.
    # "deconvolved": such that PMF ⊗ error of the label is the distribution of the labels, wrong labels apart. The
    # others take labels for the stars themselves: "outliers", "coverage", "temperature" (paper §4.5). Or "none".
    c.calibrate = {
        "kind": "deconvolved",
        "select": {},  # limits of the labels of the validation stars to fit to, as in `evaluate.groups`
        "noise": (),  # S/N per pixel that they have in copies with noise, for surveys of poorer spectra
        "breadth": 9.0,  # outliers' PMFs are three times as wide
        "label_breadth": 25.0,  # "deconvolved": wrong labels have about five times the error that is quoted,
        "label_breadth_sigma": 1.0,  # or what is found instead
        "power_sigma": 1.0,
        "outliers": 0.05,
        "outliers_sigma": 1.5,
        "tails": 0.05,  # "deconvolved": stars that the networks are far off for
        "min_stars": 10,
        # "deconvolved": kinds of stars with a power of their own, by limits of the predicted labels. Stars belong to
        # them with the probability that the PMFs say; without validation stars they are uncalibrated.
        "groups": {"dwarfs": {"logg": (3.5, 5.5)}, "giants": {"logg": (1.0, 3.5)}},
        "group_sigma": 1.0,
        "snr_sigma": 0.5,  # prior on the slope of ln power with log10 S/N; 0 = none
    }

    # What predictions are compared with (remap.stages.references): random library spectra, how many of them with
    # their pixels, and neighbours of a spectrum in the catalogue, per label and over all.
    c.references = {"library": 4096, "spectra": 4096, "neighbors": 3}
    # When the flag FAR is set (remap.predict.familiar): the best mixture of so many nearest references leaves more
    # than is usual of labelled stars.
    c.far = {
        "use": ("stars", "library"),  # references that may explain a spectrum; () = never set
        "rate": 0.01,  # share of normal stars for which it is set
        "mixed": 16,
        "noise": 0.1,  # of the continuum; of more, no more than this is allowed for
        "min_snr": 5.0,  # by the scatter of pixels; noise hides what a spectrum below it is, and it is far
        "min_stars": 10,  # below so many labelled stars nothing can be said
    }

    c.predict = {
        "batch_size": 256,
        "small_batch_size": 16,  # for so few spectra or fewer
        # How the arms become one PMF: "conflation" (eq. 6), "prior_corrected" (eq. 6, with the labels' distribution
        # in training counted once instead of once per arm) or "mean".
        "combine": "conflation",
        "min_coverage": 0.5,  # valid fraction of an arm below which it is not used
        "full_coverage": 0.95,  # below it the arm is used and flagged
        # So is one with a masked stretch of more line spreads, and of more than twice the pixels that gaps had in the
        # training: networks take a line that it hides for missing.
        "longest_gap": 1.0,
        "min_snr": 20.0,  # per pixel; below it a row is flagged
        "edge_mass": 0.5,  # probability in the outermost two bins of a range beyond which a row is flagged
        # Limits of labels between which labelled stars were: a row is flagged where its median is within so many half
        # widths of its 68 % interval of one of them. A star beyond comes out inside.
        "range": {},
        "range_widths": 3.0,
        "mode_prominence": 0.3,  # height of a second mode, of the highest bin, that flags a row
        "disagreement": 3.0,  # difference of the arms' medians in units of their joint 1-sigma width
    }
    # What each piece of the method is worth (remap.studies.ablate): every variant is trained for every seed as the
    # config says but for the fields that it names, and compared with the config itself ("full"). `per_label` is
    # no field: it asks for one network per label. A variant that names the value the config has anyway is listed
    # and not trained. To add one: `c.ablate.variants.NAME = {"section": {"field": value}}`.
    c.ablate = {
        "seeds": (0, 1, 2),  # of folds, networks and batches
        "run": (),  # names of the variants to train; () = all
        "overrides": {},  # changes for all, the full model too, like those of a variant: a shorter training, say
        "resamples": 2000,
        "level": 0.95,
        "variants": {
            "no_triplet": {"loss": {"triplet_weight": 0.0}},
            "single_task": {"per_label": True},
            "no_cost": {"loss": {"cost_weight": 0.0}},
            "cross_entropy": {"loss": {"gamma": 0.0}},
            "no_temperature": {"model": {"temperature": False}},
            "no_swa": {"pretrain": {"average": "last"}, "finetune": {"average": "last"}},
            "uniform_rates": {"finetune": {"layer_rates": "uniform"}},
            "graded_rates": {"finetune": {"layer_rates": "graded"}},
            "average_pooling": {"model": {"pooling": "avg"}},
            "relu": {"model": {"activation": "relu"}},
            # The paper's fixed set has nodes alone: "nodes" tells the two changes apart.
            "nodes": {"library": {"interpolate": False}},
            "fixed_noise": {"augment": {"kind": "paper"}, "library": {"interpolate": False}},
        },
    }
    # Groups of the report: limits of the known labels, both ends included. `snr_edges`: between the bins of
    # by_snr.ecsv. `quoted`: bias and scatter shown beside ours in table1.md, with their source.
    c.evaluate = {
        "groups": {
            "dwarfs": {"teff": (4500.0, 6500.0), "logg": (3.5, 5.5), "feh": (-1.0, 1.0)},
            "giants": {"logg": (1.0, 3.4999)},
        },
        "snr_edges": (30.0, 60.0, 100.0),
        "quoted": {"teff": (-10.0, 75.0), "logg": (0.02, 0.12), "feh": (-0.01, 0.08)},
        "quoted_source": "the paper's table 1, 30 MARVELS calibration stars",
    }
    # Of the page that `launch.report` writes: stars with a card (flagged ones and a sample of the others, where there
    # are more), and lines that are named in the spectrum of an arm.
    c.report = {"cards": 100, "lines": 16}
    return c
