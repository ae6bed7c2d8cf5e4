"""Every experiment's config: it loads, is locked, refuses what it does not know, and agrees with the design."""

import dataclasses
import inspect
import json
from importlib import import_module

import ml_collections
import numpy as np
import pytest
from absl import flags
from helpers import tiny
from ml_collections import config_flags

from configs import common
from remap import surveys
from remap.autoencoder.adapt import AdaptSettings
from remap.autoencoder.errors import GapSettings, gap_settings
from remap.autoencoder.estimate import EstimateSettings
from remap.autoencoder.grid_search import GridSettings, combinations
from remap.autoencoder.inputs import Noise, make_window
from remap.autoencoder.members import ENCODERS, EnsembleSettings
from remap.autoencoder.network import AutoencoderLoss, AutoencoderSettings, adapt_rules
from remap.autoencoder.regressor import RegressorSettings, RegressSettings
from remap.config import ConfigError, config_to_json, record, tuples
from remap.continuum.common import MIN_PIXELS
from remap.io import FORMATS, read, read_labels
from remap.network.losses import LossSettings
from remap.network.resnet import ModelSettings, build_model
from remap.pmf.calibration import CalibrationSettings
from remap.predict.familiar import FarSettings
from remap.predict.references import ReferenceSettings
from remap.preprocess.description import make_preprocessing
from remap.preprocess.grid import observed_on_grid
from remap.preprocess.observe_settings import ObserveSettings, observe_settings
from remap.report.tables import by_snr
from remap.sampling.augment import AugmentSettings
from remap.sampling.mixture import library_weights
from remap.stages.align import AlignStageSettings
from remap.stages.calibrate import calibration_settings
from remap.stages.evaluate import EvaluateSettings
from remap.stages.fetch_library import FetchSettings
from remap.stages.finetune import FinetuneSettings
from remap.stages.library import LibraryFiles
from remap.stages.preprocess import SurveyFiles
from remap.stages.pretrain import PretrainSettings
from remap.stages.references import far_settings, reference_settings
from remap.stages.report import ReportSettings
from remap.store.stars import SplitSettings, split_settings
from remap.studies.ablate import AblateSettings, plan
from remap.studies.cross_validate import CrossValidationSettings, candidate_config, read_candidates
from remap.studies.find_lr import RangeSettings
from remap.studies.optuna_search import SearchSettings
from remap.synth.library import grid_nodes, make_library
from remap.synth.survey import SurveySettings
from remap.train.embeddings import EmbeddingSettings
from remap.train.optim import layer_rules

# ml_collections loads config files in a way that Python 3.12 drops.
OLD_LOADER = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")
NOT_EXPERIMENTS = ("__init__", "autoencoder", "common", "synthesize")
NAMES = sorted(p.stem for p in (tiny.REPOSITORY / "configs").glob("*.py") if p.stem not in NOT_EXPERIMENTS)


def get(name, arg=None):
    return import_module(f"configs.{name}").get_config(arg)


@pytest.fixture
def parse(monkeypatch):
    """The config that a launch script gets from its command line."""

    def call(*arguments):
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        monkeypatch.setattr("sys.argv", ["launch", *arguments])  # where ml_collections looks for overrides
        values(["launch", *arguments])
        return holder.value

    return call


def test_there_are_configs():
    assert {"quickstart", "miles", "marvels", "carmenes", "miles_autoencoder"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_config_describes_a_whole_experiment(name):
    c = get(name)
    assert c.name == name
    assert c.is_locked
    json.loads(c.to_json())
    preprocessing = make_preprocessing(c)
    for arm in preprocessing.arms:
        assert len(preprocessing.wave(arm)) >= MIN_PIXELS
        preprocessing.continuum_settings(arm)
    assert preprocessing.line_spreads()
    assert len(build_model(c.model, preprocessing.labels).bin_mask) == len(c.label_names)
    record(LossSettings, c.loss, "loss")
    augment = record(AugmentSettings, c.augment, "augment")
    stars = record(AugmentSettings, {**c.augment, **c.finetune.augment}, "finetune.augment")
    # Off, so that batches are those of the results that are quoted; for stars every field but noise is given.
    if not name.startswith("fgk_"):
        assert augment.effects == stars.effects == {}
    assert augment.of_library == {}
    noise, library = {"noise_low", "noise_high", "noise_law", "levels", "draws"}, set(LIBRARY_ALONE)
    assert set(c.augment) - set(c.finetune.augment) == {"kind", *noise, *library}
    epochs = record(EmbeddingSettings, c.embeddings, "embeddings").epochs
    assert max(epochs, default=0) <= c.pretrain.cycles * c.pretrain.epochs_per_cycle
    assert set(calibration_settings(c.calibrate).groups) == {"dwarfs", "giants"}
    report = record(EvaluateSettings, c.evaluate, "evaluate")
    record(ReportSettings, c.report, "report")
    assert reference_settings(c).spectra <= reference_settings(c).library
    assert set(far_settings(c).use) == {"stars", "library"}
    assert by_snr(*np.zeros((4, 1)), report.snr_edges)
    assert set(report.quoted) <= set(c.label_names)
    assert layer_rules(c.finetune.layer_rates, len(c.model.filters), factor=c.finetune.rate_factor)
    compared = record(CrossValidationSettings, c.cross_validate, "cross_validate")
    space = record(SearchSettings, compared.optuna, "cross_validate.optuna")
    for candidate in (*read_candidates(compared.candidates), space.corner):
        build_model(candidate_config(c, candidate, compared.stage).model, preprocessing.labels)
    library, survey = record(LibraryFiles, c.library, "library"), record(SurveyFiles, c.survey, "survey")
    assert {library.source.format, survey.source.format} <= set(FORMATS)
    assert set(survey.labels["columns"]) <= set(c.label_names)
    assert all(0 <= fold < c.split.folds for fold in c.split.run)
    models = {v.name: v for v in plan(c)}
    assert models.keys() == {"full", *c.ablate.variants}
    assert {v for v in models if models[v].same} >= {f"{c.finetune.layer_rates}_rates"}
    assert {"no_triplet", "single_task"} <= {v for v in models if not models[v].same}  # the paper's own


@pytest.mark.parametrize("name", NAMES)
def test_locked_config_refuses_new_fields(name):
    c = get(name)
    with pytest.raises(AttributeError, match="batchsize"):
        c.pretrain.batchsize = 3
    with pytest.raises(AttributeError, match="nothing_known"):
        c.nothing_known = 3


@pytest.mark.parametrize("name", ["common", "synthesize", *NAMES])
def test_unknown_argument_is_refused_by_name(name):
    with pytest.raises(ValueError, match="unknown config argument 'shrt'; this config knows"):
        get(name, "shrt")


@pytest.mark.parametrize("name", ["fgk_r1800", "fgk_r11000"])
def test_networks_for_other_surveys_have_two_libraries_within_their_bins(name):
    c = get(name)
    assert dict(library_weights(c)) == {"": 0.5, "coolstars": 0.5}
    for label, (low, high) in {"teff": (3750, 7500), "logg": (0, 5), "feh": (-2.5, 0.5)}.items():
        assert c.labels[label].low < low < high < c.labels[label].high
    varied = record(AugmentSettings, get(name, "lines,alpha").augment, "augment")
    assert varied.of_library == {"lines": 0.7, "lines_each": 0.35, "alpha": (0.0, 0.35)}
    assert make_preprocessing(get(name, "lines,alpha")) == make_preprocessing(c)


def test_finer_pixels_have_the_same_ends_and_outputs_of_the_stem():
    coarse, fine = get("fgk_r11000"), get("fgk_r11000", "fine")
    for arm in coarse.arm_names:
        one, two = (make_preprocessing(c).wave(arm) for c in (coarse, fine))
        assert two.size == pytest.approx(2 * one.size, abs=1)
        assert one[0] == two[0]
    assert coarse.arms.A.step * coarse.model.stem_stride == pytest.approx(
        fine.arms.A.step * fine.model.stem_stride
    )


def test_the_network_for_others_is_on_the_scale_of_the_benchmark_stars(data_root):
    c = get("fgk_r1800")
    path = data_root / "miles" / "labels_consensus.ecsv"
    found, plain = (read_labels(path, source=x.survey.labels) for x in (c, get("fgk_r1800", "cenarro")))
    logg = plain.values["logg"]
    for label, giants, dwarfs in (("teff", 4.0, 67.0), ("logg", -0.09, 0.01), ("feh", -0.02, 0.01)):
        added = found.values[label] - plain.values[label]
        np.testing.assert_allclose(added[logg > 4], dwarfs, atol=1e-9)
        np.testing.assert_allclose(added[logg < 3], giants, atol=1e-9)


def test_miles_is_degraded_to_the_network_for_others(data_root):
    """Its lines are 2.5 Å wide, R = 1,800 is 2.7 to 3.2 Å."""
    c = get("fgk_r1800")
    preprocessing = make_preprocessing(c)
    file = next((data_root / "miles" / "spectra").glob(c.survey.patterns[0]))
    star = read(file, source=c.survey.source, within=(4700.0, 5900.0))
    np.testing.assert_allclose(star.fwhm, 2.5)
    for arm in preprocessing.arms:
        seen = observed_on_grid(star, preprocessing, arm)
        np.testing.assert_allclose(seen.fwhm, preprocessing.wave(arm) / 1800, rtol=1e-3)
        assert seen.valid.mean() > 0.99


@pytest.mark.parametrize("name", ["quickstart", "miles"])
def test_short_variant_is_the_same_experiment_with_less_work(name):
    full, short = get(name), get(name, "short")
    assert short.is_locked
    for stage in ("pretrain", "finetune"):
        epochs = [c[stage].cycles * c[stage].epochs_per_cycle for c in (full, short)]
        assert epochs[1] <= epochs[0] / 2
        assert max(short.embeddings.epochs) <= short.pretrain.cycles * short.pretrain.epochs_per_cycle
    assert len(short.split.run) == 1
    # What decides the pixels is the same, so that a short run shows the same steps.
    assert make_preprocessing(short) == make_preprocessing(full)


LIBRARY_ALONE = ("lines", "lines_each", "lines_components", "depths", "alpha", "alpha_scatter")
ROUTES = ("carmenes", "miles_autoencoder", "quickstart_autoencoder")


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("arg", [None, "short"])
def test_config_describes_a_whole_autoencoder_route(name, arg):
    if name == "carmenes" and arg:
        pytest.skip("carmenes has no short form")
    c = get(name, arg)
    preprocessing = make_preprocessing(c)
    pixels = sum(len(preprocessing.wave(arm)) for arm in preprocessing.arms)
    settings = record(EnsembleSettings, c.autoencoder, "autoencoder")
    for i in range(len(settings.members)):
        assert settings.model(settings.member(i)["width"], pixels)
    for run in combinations(record(GridSettings, c.search, "search")):
        assert settings.model(run["width"], pixels)
    make_window(preprocessing, low=c.autoencoder.scale_low, high=c.autoencoder.scale_high)
    assert settings.noise
    assert settings.loss(1e-7)
    adapt_rules(c.adapt.trains)
    assert record(RegressSettings, c.regressor, "regressor").model
    assert set(c.autoencoder.limits) <= set(c.label_names)
    assert c.regressor.encoder in ENCODERS
    record(EstimateSettings, c.estimate, "estimate")
    gap_settings(c)


def test_defaults_of_the_routes_records_are_the_published_values():
    c = get("carmenes")
    settings = record(EnsembleSettings, c.autoencoder, "autoencoder")
    assert settings == EnsembleSettings(limits=settings.limits)
    assert record(RegressSettings, c.regressor, "regressor") == RegressSettings()
    adapted = record(AdaptSettings, c.adapt, "adapt")
    assert adapted == AdaptSettings(align=adapted.align)
    assert gap_settings(c) == GapSettings()
    assert record(GridSettings, c.search, "search") == GridSettings()
    assert settings.noise == Noise()
    assert record(EstimateSettings, c.estimate, "estimate") == EstimateSettings()
    width, l1, _ = settings.members[0]
    assert settings.model(width, 24).settings == AutoencoderSettings(width)
    assert settings.loss(l1) == AutoencoderLoss()
    assert RegressSettings().model.settings == RegressorSettings()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("folds", 1, "at least 2 folds"),
        ("resamples", 0, "at least 1"),
        ("level", 1.0, r"gap\.level: expected"),
    ],
)
def test_diagnostics_that_cannot_be_are_refused_by_name(field, value, message):
    c = get("carmenes")
    c.gap[field] = value
    with pytest.raises(ConfigError, match=message):
        gap_settings(c)


def test_carmenes_is_as_published():
    """Mas-Buitrago et al. 2024, A&A 687, A205; their code has the lengths, the rates and the grid."""
    c = get("carmenes")
    preprocessing = make_preprocessing(c)
    wave = preprocessing.wave("A")
    assert (wave[0], wave.size) == (8800.0, 3501)
    assert wave[-1] == pytest.approx(8835.0)
    assert c.autoencoder.limits.to_dict() == {
        "teff": (2325.0, 4475.0),
        "logg": (4.7, 5.3),
        "feh": (-1.0, 0.6),
        "vsini": (1.5, 30.0),
    }
    for label in preprocessing.labels:  # the ranges of the draws lie inside the library's
        low, high = c.autoencoder.limits[label.name]
        assert label.low <= low < high <= label.high
    assert c.labels.vsini.library_values[0] <= 1.5
    assert c.labels.vsini.library_values[-1] >= 30.0
    assert (c.autoencoder.latent, c.autoencoder.bottleneck, c.autoencoder.contractive) == (32, "relu", 1e-4)
    assert (c.autoencoder.epochs_per_cycle, c.adapt.epochs_per_cycle, c.regressor.epochs_per_cycle) == (
        120,
        60,
        200,
    )
    assert len(combinations(GridSettings())) == 25
    assert c.search.widths == tuple(int(w) for w in np.linspace(2**10, 2**11, 5))


@OLD_LOADER
def test_fields_can_be_set_on_the_command_line(parse):
    c = parse(
        f"--config={tiny.REPOSITORY}/configs/miles.py:short",
        "--config.pretrain.batch_size=7",
        "--config.finetune.init=scratch",
        "--config.split.run=(2,)",
    )
    assert (c.pretrain.batch_size, c.finetune.init, c.split.run) == (7, "scratch", (2,))
    assert c.pretrain.cycles == get("miles", "short").pretrain.cycles


@OLD_LOADER
def test_a_value_of_another_type_is_refused_by_name(parse):
    with pytest.raises(flags.IllegalFlagValueError, match=r"config\.pretrain\.batch_size=abc"):
        parse(f"--config={tiny.REPOSITORY}/configs/miles.py", "--config.pretrain.batch_size=abc")


def test_default_library_covers_the_grid_of_the_design():
    c = get("synthesize")
    assert c.is_locked
    nodes = grid_nodes(**{n: c.library[n] for n in ("teff", "logg", "m_h", "vmic", "logg_floor")})
    assert nodes.shape == (594, 4)
    np.testing.assert_allclose(nodes.min(axis=0), [4000, 1.0, -2.0, 1.0])
    np.testing.assert_allclose(nodes.max(axis=0), [7000, 5.0, 0.5, 1.8])
    assert inspect.signature(make_library).parameters.keys() - c.library.keys() == {"lines"}
    assert c.library.keys() == get("synthesize", "short").library.keys()


@pytest.mark.parametrize("arg", [None, "short"])
def test_every_choice_of_the_mock_survey_is_a_field(arg):
    settings = get("quickstart", arg).synthetic
    assert {field.name for field in dataclasses.fields(SurveySettings)} == set(settings.survey)
    record(SurveySettings, settings.survey, "synthetic.survey")
    assert inspect.signature(make_library).parameters.keys() - settings.library.keys() == {"lines", "alpha"}


def test_defaults_of_the_studies_records_are_the_shared_values():
    c = common.get_config()
    compared = record(CrossValidationSettings, c.cross_validate, "cross_validate")
    own = {
        "candidates": compared.candidates,
        "optuna": compared.optuna,
    }  # lists of what to try have no default
    assert compared == CrossValidationSettings(**own)
    space = record(SearchSettings, compared.optuna, "cross_validate.optuna")
    assert space == SearchSettings(space=space.space)
    variants = record(AblateSettings, c.ablate, "ablate")
    assert variants == AblateSettings(overrides=variants.overrides, variants=variants.variants)


def test_defaults_of_splits_and_report_are_the_shared_values():
    c = common.get_config()
    assert split_settings(c) == SplitSettings()
    assert vars(EvaluateSettings()) == c.evaluate.to_dict()
    assert vars(ReportSettings()) == c.report.to_dict()
    assert vars(ReferenceSettings()) == c.references.to_dict()
    assert vars(FarSettings()) == c.far.to_dict()


def test_defaults_of_the_calibration_are_the_shared_values():
    assert CalibrationSettings() == calibration_settings(common.get_config().calibrate)


def test_defaults_of_the_stages_records_are_the_shared_values():
    c = common.get_config()
    for cls, name in (
        (AugmentSettings, "augment"),
        (LossSettings, "loss"),
        (ModelSettings, "model"),
        (PretrainSettings, "pretrain"),
        (EmbeddingSettings, "embeddings"),
        (RangeSettings, "find_lr"),
        (AlignStageSettings, "align"),
        (FetchSettings, "fetch"),
    ):
        assert record(cls, c[name], name) == cls(), name
    tuned = record(FinetuneSettings, c.finetune, "finetune")
    assert dataclasses.replace(
        tuned, augment={}, rehearsal_augment={}, select=c.finetune.select.to_dict()
    ) == (FinetuneSettings())
    assert not any(c.finetune.augment.values())  # effects that are all off, as those of `augment`


def test_shared_values_are_those_of_the_design():
    """Those of the paper and of docs/design.md. A change of these numbers is a change of the method."""
    c = common.get_config()
    assert c.label_names == ("teff", "logg", "feh")
    bins = {n: (b.low, b.high, b.bins, b.library_sigma) for n, b in c.labels.items()}
    assert bins == {
        "teff": (3000.0, 7000.0, 50, 20.0),
        "logg": (1.0, 5.5, 30, 0.1),
        "feh": (-2.0, 1.0, 60, 0.1),
    }
    assert c.lsf.to_dict() == {"kind": "resolution", "values": (10000.0, 11000.0, 12000.0)}
    assert (c.continuum.ratio, c.continuum.relift, c.continuum.max_steps) == (0.999, 1.05, 9206)
    assert (c.continuum.degree, c.continuum.sigma) == (6, 15.0)
    assert (c.augment.noise_low, c.augment.noise_high) == (0.005, 0.02)
    assert 3 * c.augment.levels * c.augment.draws == 45  # spectra per node of the paper's set
    loss = {"gamma": 2.0, "cost_weight": 1.0, "triplet_weight": 0.001, "margin": 0.2, "label_weights": ()}
    assert c.loss.to_dict() == loss
    assert (c.model.temperature, c.pretrain.average, c.finetune.average) == (True, "swa", "swa")
    for stage in (c.pretrain, c.finetune):
        assert (stage.cycles, stage.epochs_per_cycle) == (4, 30)
        assert (stage.rate_high, stage.rate_low) == (1e-3, 1e-5)
    assert (c.finetune.layer_rates, c.finetune.rate_factor) == ("graded", 0.1)


def test_a_survey_by_name_is_its_record_with_what_is_declared_otherwise():
    section = common.known_survey("harps", "here", ("teff",), medium="vacuum")
    known = surveys.get("harps")
    assert section.patterns == known.patterns
    assert section.path == "here/spectra"
    plain = json.loads(json.dumps(config_to_json(section)))
    assert tuples(plain["source"]) == tuples(
        config_to_json(ml_collections.ConfigDict(dict(known.source, medium="vacuum")))
    )
    several = common.known_survey("lamost_lrs", "here", ("teff",), line_spread={"resolution": 2000.0}).source
    assert all(option["line_spread"] == {"resolution": 2000.0} for option in several["options"])


def test_defaults_of_the_treatment_of_observed_spectra_are_the_shared_values():
    section = common.get_config().observe
    assert observe_settings(section) == ObserveSettings()
    fields = {field.name for field in dataclasses.fields(ObserveSettings)}
    assert set(section) == fields
