"""Cross-validation of the tiny experiment: folds, what is judged, resuming, the choice and its file."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError, apply_overrides, read_overrides, record
from remap.network import resnet
from remap.network.losses import LossSettings, LossTerms
from remap.network.resnet import count_parameters, init_variables
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import Batch
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import held_out_batch
from remap.store.atomic import read_arrays, save_arrays
from remap.store.stars import fold_split, readable_stars, split_settings
from remap.store.workdir import load_library, load_survey, read_preprocessing
from remap.studies import cross_validate as module
from remap.studies.comparison import Candidate
from remap.studies.cross_validate import CrossValidationSettings, cross_validate, read_candidates
from remap.train.loop import DivergedError
from remap.train.objectives import batch_loss

# "stands" cannot win: its rate moves nothing. Folds and epochs are such that the programs of the other tests serve.
CANDIDATES = (
    {"name": "stands", "pretrain.rate_high": 1e-9, "pretrain.rate_low": 1e-9},
    {"name": "learns", "pretrain.rate_high": 1e-2},
)
FOLDS = 4


def one_arm(data, **changes):
    settings = {"folds": FOLDS, "cycles": 2, "epochs_per_cycle": 2, "candidates": CANDIDATES} | changes
    changes = {f"cross_validate__{name}": value for name, value in settings.items()}
    return tiny.config(data, arm_names=("A",), **changes)


@pytest.fixture(scope="module")
def prepared_arm(tiny_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one_arm")
    preprocess(one_arm(tiny_data), workdir)
    return workdir


@pytest.fixture(scope="module")
def compared(tiny_data, prepared_arm, tmp_path_factory):
    """A working folder in which the candidates were compared, and the table."""
    workdir = tmp_path_factory.mktemp("compared") / "work"
    shutil.copytree(prepared_arm, workdir)
    return workdir, cross_validate(one_arm(tiny_data), workdir)


def records(workdir, stage="pretrain"):
    """The fold records of each candidate, in order."""
    found = {}
    for path in sorted((workdir / "cross_validate" / stage).glob("*/A/fold_*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["candidate"], []).append((path, record))
    return found


@pytest.fixture
def untrained(monkeypatch):
    """Instead of training: a function that sets each fold's loss, called with the name of the training.

    Returns the names of the trainings that were asked for.
    """

    def use(loss_of):
        names = []

        def train(start, *, name, **_):
            names.append(name)
            return {"params": loss_of(name), "batch_stats": None}

        def judge(loss, stats, batch, *, objective):
            return LossTerms(np.float32(loss), *([0.0] * 3 for _ in range(4)))

        monkeypatch.setattr(module, "train_network", train)
        monkeypatch.setattr(module, "evaluate", judge)
        monkeypatch.setattr(module, "held_out_batch", lambda *_: Batch(*[np.ones((8, 1))] * 4))
        # Compiled for every network, and of these only the shapes are looked at.
        monkeypatch.setattr(module, "init_variables", lambda *a: jax.eval_shape(lambda: init_variables(*a)))
        return names

    return use


# ------------------------------------------------------------------------------------------------- folds


def test_folds_of_cells_are_disjoint_cover_all_and_do_not_depend_on_the_order(prepared_arm, tiny_data):
    library = load_library(prepared_arm, read_preprocessing(prepared_arm), "A", interpolate=True)
    folds = module.cell_folds(library.cells, FOLDS, 0)
    assert len(folds) == len(library.cells) == 8
    np.testing.assert_array_equal(np.bincount(folds), [2, 2, 2, 2])
    np.testing.assert_array_equal(module.cell_folds(library.cells[::-1], FOLDS, 0), folds[::-1])


def test_networks_train_on_the_other_cells_and_are_judged_on_those_of_the_fold(
    prepared_arm, tiny_data, tmp_path, monkeypatch
):
    def names(cells):
        return {tuple(c) for c in np.asarray(cells)}

    trained, judged = [], []

    def judge(start):
        judged.append((names(start.held_out), held_out_batch(start)))
        return judged[-1][1]

    monkeypatch.setattr(
        module, "train_network", lambda start, *_, **__: trained.append(start) or start.variables
    )
    monkeypatch.setattr(module, "held_out_batch", judge)
    workdir = tmp_path / "work"
    shutil.copytree(prepared_arm, workdir)
    config = one_arm(tiny_data, candidates=({"name": "a"}, {"name": "b", "augment.noise_high": 0.5}))
    table = cross_validate(config, workdir)
    held = [cells for cells, _ in judged]
    every = set().union(*held)
    assert len(every) == sum(map(len, held[:FOLDS])) == 8
    assert held[:FOLDS] == held[FOLDS:]
    assert [names(start.source.spectra.library.cells) for start in trained] == [
        every - cells for cells in held
    ]
    # Candidates share start and spectra (whatever their own noise), folds do not: untrained, all lose alike.
    kernels = [np.asarray(start.variables["params"]["stem"]["kernel"]) for start in trained]
    assert np.array_equal(kernels[0], kernels[FOLDS])
    assert not np.array_equal(kernels[0], kernels[1])
    assert table["mean"][0] == table["mean"][1]
    # The loss, by hand: running statistics, no dropout.
    variables, batch = trained[0].variables, judged[0][1]
    apply = jax.jit(
        lambda v: trained[0].objective.model.apply(v, batch.flux, batch.valid, train=False, running=True)
    )
    expected = batch_loss(apply(variables), batch, record(LossSettings, config.loss, "loss")).total
    assert records(workdir)["a"][0][1]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_folds_of_stars_are_by_star_and_leave_out_the_test_stars(prepared_arm, tiny_data):
    stars, config = readable_stars(prepared_arm), tiny.config(tiny_data)
    folds = module.star_folds(stars, split_settings(config), folds=3, fold=0)
    used = folds >= 0
    split = fold_split(stars, split_settings(config), 0)
    np.testing.assert_array_equal(used, np.isin(split, ["train", "val"]))
    assert not set(stars["star_id"][used]) & set(stars["star_id"][split == "test"])
    members = [set(stars["star_id"][folds == k]) for k in range(3)]
    assert sorted(map(len, members)) == [2, 3, 3]
    assert sum(map(len, members)) == len(set().union(*members)) == 8  # of nine spectra
    everyone = module.star_folds(stars, split_settings(config), folds=3, fold=-1)
    np.testing.assert_array_equal(everyone >= 0, split != "other")


def test_finetune_trains_on_the_stars_of_the_other_folds(tiny_data, prepared_arm, tmp_path, monkeypatch):
    """From scratch, two folds; the normaliser takes long to compile and has no part in this."""
    monkeypatch.setattr(Preprocessing, "normalizer", lambda self, arm: lambda flux, valid: flux)
    seen = []
    monkeypatch.setattr(
        module, "train_network", lambda start, *_, **__: seen.append(start) or start.variables
    )
    workdir = tmp_path / "work"
    shutil.copytree(prepared_arm, workdir)
    change = {"stage": "finetune", "fold": -1, "folds": 2, "candidates": ({"name": "a"},)}
    config = one_arm(tiny_data, **change)
    config.finetune.init = "scratch"
    cross_validate(config, workdir)
    survey, _ = load_survey(workdir, "A")
    folds = module.star_folds(readable_stars(workdir), split_settings(config), folds=2, fold=-1)
    for fold, start in enumerate(seen):
        spectra = start.source.stars.spectra
        rows = np.asarray(spectra.rows)[: int(spectra.count)]
        np.testing.assert_array_equal(spectra.stars.labels[rows], survey.labels[folds == 1 - fold])
    assert [r["validation"] for _, r in records(workdir, "finetune")["a"]] == [9, 9]
    assert (workdir / "cross_validate" / "finetune" / "chosen.json").is_file()


def test_finetune_from_a_network_of_another_width_is_refused(tiny_data, tiny_workdir, tmp_path):
    shutil.copytree(tiny_workdir, tmp_path / "work")
    config = tiny.config(
        tiny_data,
        cross_validate__stage="finetune",
        cross_validate__folds=2,
        cross_validate__candidates=({"name": "wide", "model.filters": (8, 16)},),
    )
    with pytest.raises(ValueError, match=r"filters: expected \[8, 16\], found \[4, 8\]"):
        cross_validate(config, tmp_path / "work")


# ---------------------------------------------------------------------------------------------- results


def test_the_candidate_that_learns_wins(compared):
    workdir, table = compared
    rows = {row["name"]: row for row in table}
    assert rows["learns"]["chosen"]
    assert not rows["stands"]["chosen"]
    losses = {name: np.array([r["loss"] for _, r in found]) for name, found in records(workdir).items()}
    assert (losses["learns"] < losses["stands"]).all()
    assert rows["learns"]["mean"] == pytest.approx(losses["learns"].mean())
    assert rows["learns"]["std"] == pytest.approx(losses["learns"].std(ddof=1))
    assert rows["stands"]["difference"] == pytest.approx((losses["stands"] - losses["learns"]).mean())
    summary = json.loads((workdir / "cross_validate" / "pretrain" / "summary.json").read_text())
    assert (summary["best"], summary["smallest"], summary["chosen"]) == ("learns",) * 3
    assert summary["candidates"][1]["losses"] == list(losses["learns"])
    assert not list(workdir.glob("**/checkpoints"))
    settings = json.loads(
        (workdir / "config.json").read_text()
    )  # of the stage before: no network is in the folder
    assert settings["cross_validate"]["folds"] == FOLDS


def test_only_a_fold_whose_record_is_gone_is_trained_again(compared, tiny_data, tmp_path, monkeypatch):
    workdir = tmp_path / "work"
    shutil.copytree(compared[0], workdir)
    path, before = records(workdir)["learns"][2]
    path.unlink()
    names, train = [], module.train_network
    monkeypatch.setattr(module, "train_network", lambda *a, **k: names.append(k["name"]) or train(*a, **k))
    table = cross_validate(one_arm(tiny_data), workdir)
    assert names == ["cross_validate learns, A fold 2"]
    after = json.loads(path.read_text())
    assert {k: v for k, v in after.items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }
    for column in ("name", "mean", "std", "difference", "chosen"):
        assert list(table[column]) == list(compared[1][column])


def test_another_setting_is_computed_in_a_folder_of_its_own(compared, tiny_data, tmp_path, untrained):
    workdir = tmp_path / "work"
    shutil.copytree(compared[0], workdir)
    before = records(workdir)
    names = untrained(lambda name: 1.0)
    cross_validate(one_arm(tiny_data), workdir)
    assert not names
    cross_validate(one_arm(tiny_data, epochs_per_cycle=1), workdir)
    after = records(workdir)
    assert {name: len(found) for name, found in after.items()} == {"stands": 8, "learns": 8}
    for name, found in before.items():
        assert all(pair in after[name] for pair in found)


def test_losses_of_other_data_are_refused(compared, tiny_data, tmp_path, untrained):
    workdir = tmp_path / "work"
    shutil.copytree(compared[0], workdir)
    names = untrained(lambda name: 1.0)
    path = workdir / "data" / "library_A.npz"
    arrays = read_arrays(path, (), "")
    save_arrays(path, **{**arrays, "log_flux": arrays["log_flux"] + np.float32(0.1)})
    with pytest.raises(
        ConfigError, match=r"cross_validate/pretrain: trained on other data than .*library_A\.npz"
    ):
        cross_validate(one_arm(tiny_data), workdir)
    assert not names


def test_diverged_candidate_is_not_chosen_and_not_trained_further(
    tiny_data, prepared_arm, tmp_path, untrained
):
    workdir = tmp_path / "work"
    shutil.copytree(prepared_arm, workdir)

    def loss(name):
        if "learns" in name:
            raise DivergedError(f"{name}: the loss is not finite")
        return 1.0

    names = untrained(loss)
    table = cross_validate(one_arm(tiny_data), workdir)
    assert list(table["chosen"]) == [True, False]
    assert list(table["folds"]) == [FOLDS, 0]
    assert sum("learns" in name for name in names) == 1
    summary = (workdir / "cross_validate" / "pretrain" / "summary.json").read_text()
    json.loads(summary, parse_constant=pytest.fail)  # no NaN, which is no JSON
    cross_validate(one_arm(tiny_data), workdir)
    assert len(names) == FOLDS + 1  # divergence is remembered, too


def test_script_reads_what_is_there_and_its_choice_changes_the_next_ones_network(
    compared, tiny_data, tmp_path
):
    """In another process the settings have the same digests: nothing is trained."""
    workdir = tmp_path / "work"
    shutil.copytree(compared[0], workdir)
    done = tiny.launch(
        "launch.cross_validate",
        "--config=tests/helpers/tiny.py",
        f"--config.data_root={tiny_data}",
        "--config.arm_names=('A',)",
        f"--config.cross_validate.folds={FOLDS}",
        "--config.cross_validate.cycles=2",
        "--config.cross_validate.epochs_per_cycle=2",
        f"--config.cross_validate.candidates={CANDIDATES}",
        f"--workdir={workdir}",
        before="from remap.studies import cross_validate\ndel cross_validate.train_network",
    )
    assert done.returncode == 0, done.stderr
    path = workdir / "cross_validate" / "pretrain" / "chosen.json"
    assert done.stdout.strip() == f"--override={path}"
    assert "chosen learns" in done.stderr
    assert read_overrides(path) == {"pretrain.rate_high": 1e-2}


def test_smallest_or_best_is_chosen_as_the_config_says(tiny_data, prepared_arm, tmp_path, untrained):
    """And the choice, applied, gives the network whose parameters were counted."""
    workdir = tmp_path / "work"
    shutil.copytree(prepared_arm, workdir)
    candidates = (
        {"name": "wide", "model.filters": (8, 16)},
        {"name": "narrow", "model.filters": (2, 4), "model.stem_filters": 2},
    )
    losses = {"wide": [1.0, 2.0, 3.0, 4.0], "narrow": [1.1, 1.9, 3.1, 4.0]}
    untrained(lambda name: losses[name.split()[1].strip(",")][int(name[-1])])
    for choose, name, filters in (("best", "wide", (8, 16)), ("smallest", "narrow", (2, 4))):
        config = one_arm(tiny_data, candidates=candidates, choose=choose)
        table = cross_validate(config, workdir)
        assert list(table["name"][table["chosen"]]) == [name]
        path = workdir / "cross_validate" / "pretrain" / "chosen.json"
        chosen, _ = apply_overrides(tiny.config(tiny_data), read_overrides(path), str(path))
        assert chosen.model.filters == filters
        model = resnet.build_model(chosen.model, read_preprocessing(workdir).labels)
        shapes = jax.eval_shape(lambda key, model=model: init_variables(model, key, 120), jax.random.key(0))
        assert count_parameters(shapes["params"]) == table["parameters"][table["chosen"]][0]


def test_search_chooses_among_its_trials(tiny_data, prepared_arm, tmp_path, untrained):
    pytest.importorskip("optuna", reason="needs the extra 'search'")
    workdir = tmp_path / "work"
    shutil.copytree(prepared_arm, workdir)
    space = ({"field": "model.dropout", "kind": "float", "low": 0.1, "high": 0.9, "log": False},)
    config = one_arm(tiny_data, search="optuna")
    config.cross_validate.optuna.update({"trials": 3, "startup": 3, "stop_folds": 4, "space": space})
    names = untrained(lambda name: {"0,": 2.0, "1,": 1.0, "2,": 3.0}[name.split()[2]])
    table = cross_validate(config, workdir)
    assert list(table["name"]) == ["trial 0", "trial 1", "trial 2"]
    assert list(table["chosen"]) == [False, True, False]
    summary = json.loads((workdir / "cross_validate" / "pretrain" / "summary.json").read_text())
    tried = [c["overrides"]["model.dropout"] for c in summary["candidates"]]
    assert len(set(tried)) == 3
    chosen = read_overrides(workdir / "cross_validate" / "pretrain" / "chosen.json")
    assert chosen == {"model.dropout": tried[1]}
    again = cross_validate(config, workdir)
    assert list(again["mean"]) == list(table["mean"])
    assert len(names) == 3 * FOLDS


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.filter": (2,)}, r"candidate 'x': the config has no field 'model\.filter'"),
        ({"loss.gamma": 1.0}, r"expected fields of model, augment or pretrain, found 'loss\.gamma'"),
        ({"finetune.rate_high": 1.0}, r"found 'finetune\.rate_high'"),
        ({"pretrain.cycles": 1}, r"'pretrain\.cycles' must be the same for all"),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused_before_any_training(
    tiny_data, prepared_arm, overrides, message
):
    candidates = ({"name": "fine"}, {"name": "x", **overrides})
    with pytest.raises(ValueError, match=message):
        cross_validate(one_arm(tiny_data, candidates=candidates), prepared_arm)
    assert not (prepared_arm / "cross_validate").exists()


def test_selection_of_stars_is_the_same_for_all(tiny_data):
    candidate = Candidate("x", {"finetune.select.logg": (1.0, 5.0)})
    with pytest.raises(ValueError, match="must be the same for all"):
        module.candidate_config(one_arm(tiny_data), candidate, "finetune")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), r"different names, found \[\]"),
        (({"name": "a"}, {"name": "a"}), r"different names, found \['a', 'a'\]"),
        (({"model.kernel": 3},), 'a "name" in each'),
    ],
)
def test_candidates_need_names_of_their_own(entries, message):
    with pytest.raises(ValueError, match=message):
        read_candidates(entries)


@pytest.mark.parametrize("change", [{"stage": "both"}, {"choose": "worst"}, {"search": "grid"}])
def test_unknown_choices_are_refused_by_name(tiny_data, change):
    (field, value) = next(iter(change.items()))
    with pytest.raises(ValueError, match=rf"cross_validate\.{field} must be one of .*found '{value}'"):
        CrossValidationSettings(**one_arm(tiny_data, **change).cross_validate)


def test_more_folds_than_cells_is_an_error(tiny_data, prepared_arm, tmp_path):
    shutil.copytree(prepared_arm, tmp_path / "work")
    with pytest.raises(ValueError, match="expected between 2 and 8 folds"):
        cross_validate(one_arm(tiny_data, folds=9), tmp_path / "work")
