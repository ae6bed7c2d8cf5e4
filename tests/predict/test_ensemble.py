"""Networks that predict together are of one training, and cost one compilation of the normaliser."""

import shutil

import numpy as np
import pytest
from helpers import tiny

from remap import load
from remap.config import ConfigError
from remap.predict import ensemble
from remap.store import checkpoint
from remap.store.workdir import read_preprocessing


@pytest.fixture
def workdir(tiny_workdir, tmp_path):
    """A trained folder to spoil."""
    return shutil.copytree(tiny_workdir, tmp_path / "work")


def respell(folder, change):
    """Changes the description that a network is kept with, and nothing else of it."""
    variables, meta = checkpoint.load_final(folder / "final")
    change(meta)
    checkpoint.save_final(folder / "final", variables, meta)


def test_a_stale_fold_is_refused_with_both_folders_and_both_values(workdir):
    respell(
        workdir / "finetune/A/fold_1", lambda meta: meta["config"]["model"].update({"activation": "relu"})
    )
    with pytest.raises(
        ConfigError, match=r"finetune/A/fold_1: .*same training as .*finetune/A/fold_0"
    ) as error:
        load(workdir)
    assert "config.model.activation: expected 'mish', found 'relu'" in str(error.value)
    load(workdir, folds=[0])  # without the stale one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["config"].update({"seed": 5}), "config.seed: expected 0, found 5"),
        (lambda meta: meta["config"]["finetune"].update({"select": {}}), "select.logg: expected"),
        (
            lambda meta: meta["split"].update({"validation": 0.5}),
            "split.validation: expected 0.25, found 0.5",
        ),
    ],
)
def test_a_stale_arm_is_refused(workdir, change, message):
    for fold in (0, 1):
        respell(workdir / f"finetune/B/fold_{fold}", change)
    with pytest.raises(
        ConfigError, match=r"finetune/B/fold_0: .*same training as .*finetune/A/fold_0"
    ) as error:
        load(workdir)
    assert message in str(error.value)


def test_arms_of_pre_training_must_agree_too(workdir):
    respell(workdir / "pretrain/B", lambda meta: meta["config"]["pretrain"].update({"rate_high": 0.5}))
    with pytest.raises(
        ConfigError, match=r"pretrain/B: .*same training as .*pretrain/A: config.pretrain.rate_h"
    ):
        load(workdir, stage="pretrain")


def test_folds_may_have_been_asked_for_one_by_one(workdir):
    """A network is the same whichever folds were run with it."""
    expected = load(workdir).predict(tiny.spectra())
    respell(workdir / "finetune/A/fold_1", lambda meta: meta["split"].update({"run": [1]}))
    found = load(workdir).predict(tiny.spectra())
    np.testing.assert_array_equal(found.pmfs["teff"], expected.pmfs["teff"])


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("finetune/A/fold_0", "finetune/A/fold_1", "fold: expected 1, found 0"),
        ("finetune/A/fold_0", "finetune/B/fold_0", "arm: expected 'B', found 'A'"),
        ("pretrain/A", "finetune/A/fold_0", "stage: expected 'finetune', found 'pretrain'"),
    ],
)
def test_a_network_in_the_folder_of_another_is_refused(workdir, source, target, message):
    """A fold that is a copy of another would be tested on stars that trained it."""
    shutil.rmtree(workdir / target / "final")
    shutil.copytree(workdir / source / "final", workdir / target / "final")
    with pytest.raises(ValueError, match=rf"{target}: holds a network of another place: .*{message}"):
        load(workdir)


def test_members_and_their_folds_are_in_order(tiny_workdir):
    preprocessing = read_preprocessing(tiny_workdir)
    networks, description = ensemble.read_ensemble(tiny_workdir, preprocessing, "finetune", [1, 0])
    assert [n.folds for n in networks.values()] == [(1, 0), (1, 0)]
    assert description["stage"] == "finetune"
    assert description["split"] == {"folds": 2, "validation": 0.25}
    kernel = [checkpoint.load_final(tiny_workdir / f"finetune/A/fold_{k}/final")[0]["params"] for k in (1, 0)]
    for member, own in zip(networks["A"].members, kernel, strict=True):
        for a, b in zip(*map(leaves, (member["params"], own)), strict=True):
            np.testing.assert_array_equal(a, b)
    (pretrained, _) = ensemble.read_ensemble(tiny_workdir, preprocessing, "pretrain", None)
    assert pretrained["B"].folds == (-1,)


def leaves(tree):
    return [x for v in tree.values() for x in (leaves(v) if isinstance(v, dict) else [v])]


def test_normaliser_and_network_are_compiled_once_whatever_the_ensemble(tiny_workdir):
    """Both arms have 120 pixels and one kind of network, so that one program of each kind serves all."""
    ensemble.normalize.clear_cache()
    ensemble.member_pmf.clear_cache()
    for folds in ([0], [1], None):
        load(tiny_workdir, folds=folds).predict(tiny.spectra())
    load(tiny_workdir, stage="pretrain").predict(tiny.spectra())
    assert ensemble.normalize._cache_size() == 1
    assert ensemble.member_pmf._cache_size() == 1


def test_config_is_compared_in_the_fields_that_both_know():
    trained = {"config": {"seed": 1, "model": {"depth": 2, "gone": 3}}, "split": {"folds": 5}}

    def check(**config):
        found = {"seed": 1, "model": {"depth": 2, "new": 4}, "split": {"folds": 5, "run": [0]}} | config
        ensemble.check_config(trained, found, "work/finetune")

    check()
    with pytest.raises(ConfigError, match=r"work/finetune: .*seed: expected 2, found 1"):
        check(seed=2)
    with pytest.raises(ConfigError, match=r"model\.depth: expected 3, found 2"):
        check(model={"depth": 3})
    with pytest.raises(ConfigError, match=r"split: expected 'nothing', found"):
        check(split="nothing")


def test_the_average_of_networks_is_one_whose_weights_are_their_mean(tiny_predictor):
    network = tiny_predictor.networks["A"]
    one = ensemble.averaged(network)
    assert len(one.members) == 1
    assert (one.folds, one.steps) == ((-1,), (max(network.steps),))
    assert set(one.weights) == {-1}
    assert one.weights[-1] not in network.weights.values()
    stem = [np.asarray(m["params"]["stem"]["kernel"]) for m in (*one.members, *network.members)]
    np.testing.assert_allclose(stem[0], np.mean(stem[1:], axis=0), rtol=1e-6)
    assert np.abs(stem[1] - stem[2]).max() > 1e-4  # or the mean would be anything
    np.testing.assert_array_equal(one.prior, network.prior)


def test_networks_with_statistics_of_their_own_are_not_averaged(tiny_predictor):
    network = tiny_predictor.networks["A"]
    first, second = network.members
    other = {**second, "batch_stats": {**second["batch_stats"]}}
    norm = other["batch_stats"]["stem_norm"]
    other["batch_stats"]["stem_norm"] = {**norm, "mean": norm["mean"] + 1e-3}
    with pytest.raises(ConfigError, match=r"same batch statistics .* finetune\.freeze_stats"):
        ensemble.averaged(network._replace(members=(first, other)))
