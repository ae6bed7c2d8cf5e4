"""The alignment term and the stage align of the main route, on the tiny experiment."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from remap import load
from remap.network.discrepancy import AlignSettings, coral, discrepancy, find_scale
from remap.sampling.sources import Library, matched_cells
from remap.stages import evaluate
from remap.stages.align import align, held_stars
from remap.stages.finetune import finetune, finetuning
from remap.stages.preprocess import preprocess
from remap.store import checkpoint
from remap.store.atomic import save_arrays
from remap.store.records import read_records
from remap.store.stars import fold_split, readable_stars, split_settings
from remap.store.workdir import read_config, read_preprocessing


def features(seed, n=40, shift=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * [1.0, 10.0, 0.0] + [0.0, 5.0, 2.0]
    return jnp.asarray(x + shift * np.array([1.0, 10.0, 0.0]), jnp.float32)


def test_discrepancies_are_in_units_of_the_library():
    library = features(0)
    scale = find_scale(library, floor=1e-3)
    covariance = np.cov(np.asarray(scale(library)), rowvar=False)
    # A feature that never changes has no variance to scale to; the others are uncorrelated with variance 1.
    np.testing.assert_allclose(np.sort(np.diag(covariance)), [0, 1, 1], atol=1e-4)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-4
    near, far = (float(discrepancy(library, features(1, shift=s), scale, kind="mmd")) for s in (0.0, 2.0))
    assert abs(near) < 0.1 * far
    moved = features(1, shift=2.0)
    found = discrepancy(library, moved, scale, kind="coral")
    assert float(found) == pytest.approx(float(coral(scale(library), scale(moved))), rel=1e-6)
    # Other units of the features change nothing.
    factor = jnp.array([[3.0, 0.5, 1.0]])
    other = find_scale(library * factor, floor=1e-3)
    again = discrepancy(library * factor, moved * factor, other, kind="mmd")
    assert float(again) == pytest.approx(far, rel=1e-4)
    assert float(discrepancy(library, moved, scale, kind="none")) == 0


def test_what_cannot_be_aligned_is_refused():
    with pytest.raises(ValueError, match=r"align\.kind must be one of .*, found 'dann'"):
        AlignSettings("dann", 1.0, True)
    with pytest.raises(ValueError, match=r"align\.weight: expected at least 0, found -1"):
        AlignSettings("mmd", -1.0, True)
    with pytest.raises(ValueError, match="at least 4 library spectra, found 3"):
        find_scale(features(0, n=3), floor=1e-3)
    with pytest.raises(ValueError, match="features that vary over the library, found none"):
        find_scale(np.ones((9, 2)), floor=1e-3)
    with pytest.raises(ValueError, match="must be 'mmd' or 'coral', found 'autoencoder'"):
        discrepancy(features(0), features(1), find_scale(features(0), floor=1e-3), kind="autoencoder")


def test_matched_cells_follow_the_stars():
    nothing = np.zeros((1, 2))
    library = Library(nothing, nothing, nothing, nothing, np.array([[0, 1], [1, 2], [2, 3]]))
    assert matched_cells(library, np.array([2, -1, 2, 0])).cells.tolist() == [[2, 3], [2, 3], [0, 1]]
    with pytest.raises(ValueError, match="none of 2 stars is inside the library"):
        matched_cells(library, np.array([-1, -1]))


def settings(data, kind="mmd", **changes):
    return tiny.config(data, arm_names=("A",), align__kind=kind, **changes)


@pytest.fixture(scope="module")
def pretrained(tiny_data, tiny_workdir, tmp_path_factory):
    """A working folder of arm A alone, pre-trained; tests must not change it."""
    workdir = tmp_path_factory.mktemp("pretrained") / "work"
    preprocess(settings(tiny_data), workdir)
    shutil.copytree(tiny_workdir / "pretrain" / "A", workdir / "pretrain" / "A")
    path = workdir / "pretrain" / "A" / "final"
    variables, meta = checkpoint.load_final(path)
    meta["preprocessing"] = read_preprocessing(workdir).to_json()  # of one arm
    shutil.rmtree(path)
    checkpoint.save_final(path, variables, meta)
    # Deeper lines than the library's: without a gap there is nothing to pull together.
    with np.load(workdir / "data" / "survey_A.npz") as arrays:
        survey = dict(arrays)
    survey["flux"] = np.sign(survey["flux"]) * np.abs(survey["flux"]) ** 2
    np.savez(workdir / "data" / "survey_A.npz", **survey)
    return workdir


@pytest.fixture(scope="module")
def aligned(tiny_data, pretrained, tmp_path_factory):
    """The same after the stage align with kind "mmd"; tests must not change it."""
    workdir = tmp_path_factory.mktemp("aligned") / "work"
    shutil.copytree(pretrained, workdir)
    align(settings(tiny_data), workdir)
    return workdir


def final(workdir, stage="align"):
    return checkpoint.load_final(workdir / stage / "A" / "final")[0]


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def test_alignment_pulls_features_together_and_leaves_the_statistics(aligned, pretrained):
    records = read_records(aligned / "align" / "A" / "metrics.jsonl")
    assert [r["epoch"] for r in records] == list(range(1, 11))
    assert records[-1]["val_alignment"] < records[0]["val_alignment"]
    assert records[-1]["loss"] == pytest.approx(
        records[-1]["labels"] + 50 * records[-1]["alignment"], rel=1e-3
    )
    before, after = final(pretrained, "pretrain"), final(aligned)
    assert same(before["batch_stats"], after["batch_stats"])
    np.testing.assert_allclose(np.sum(after["prior"], axis=-1), 1, rtol=1e-5)
    assert not np.allclose(
        before["prior"], after["prior"], atol=1e-3
    )  # half of what it draws is the stars' cells
    assert not same(before["params"]["stem"], after["params"]["stem"])
    assert jax.tree.structure(before) == jax.tree.structure(after)


@pytest.mark.parametrize("kind", ["autoencoder", "coral"])
def test_every_kind_leaves_a_network_of_the_same_shape(tiny_data, pretrained, tmp_path, kind):
    shutil.copytree(pretrained, tmp_path / "work")
    config = settings(tiny_data, kind, align__match=False)
    align(config, tmp_path / "work")
    before, after = final(pretrained, "pretrain"), final(tmp_path / "work")
    assert jax.tree.map(np.shape, before) == jax.tree.map(np.shape, after)
    records = read_records(tmp_path / "work" / "align" / "A" / "metrics.jsonl")
    assert records[-1]["val_alignment"] < records[0]["val_alignment"]


def test_labels_of_stars_have_no_part(tiny_data, pretrained, aligned, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(pretrained, workdir)
    path = workdir / "data" / "survey_A.npz"
    with np.load(path) as old:
        arrays = dict(old)
    save_arrays(path, **arrays | {"labels": arrays["labels"][::-1] + 1})
    align(settings(tiny_data), workdir)
    assert same(final(aligned), final(workdir))


def test_finetuning_starts_from_the_aligned_network(tiny_data, pretrained, aligned):
    config = settings(tiny_data)
    preprocessing = read_preprocessing(aligned)
    split = fold_split(readable_stars(aligned), split_settings(config), 0)
    start = finetuning(config, aligned, preprocessing, "A", 0, split)
    assert same(start.variables["params"], final(aligned)["params"])
    plain = finetuning(settings(tiny_data, "none"), aligned, preprocessing, "A", 0, split)
    assert same(plain.variables["params"], final(pretrained, "pretrain")["params"])
    with pytest.raises(FileNotFoundError, match="align/A/final"):
        finetuning(config, pretrained, preprocessing, "A", 0, split)
    with pytest.raises(ValueError, match=r"aligned with other settings.*weight"):
        finetuning(settings(tiny_data, align__weight=7.0), aligned, preprocessing, "A", 0, split)


def test_aligned_networks_predict_and_are_reported(tiny_data, aligned):
    assert load(aligned, stage="align").networks["A"].steps == (20,)
    table = evaluate.evaluate(settings(tiny_data), aligned)
    assert set(table["stage"]) == {"pretrain", "align"}
    bias = {row["stage"]: row["bias"] for row in table if (row["group"], row["label"]) == ("dwarfs", "teff")}
    assert bias["align"] != bias["pretrain"]


def test_networks_that_alignment_cannot_start_from_are_refused(tiny_data, pretrained, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(pretrained, workdir)
    with pytest.raises(ValueError, match=r"trained with other settings: pretrain\.validation"):
        align(settings(tiny_data, pretrain__validation=0.5), workdir)
    with pytest.raises(ValueError, match=r"needs library\.interpolate, found nodes without cells"):
        matched_cells(Library(*[np.zeros((3, 1), int)] * 5), np.array([0]))
    path = workdir / "pretrain" / "A" / "final"
    variables, meta = checkpoint.load_final(path)
    meta["config"]["pretrain"]["average"] = "snapshots"
    shutil.rmtree(path)
    checkpoint.save_final(path, variables, meta)
    with pytest.raises(ValueError, match=r"one network to train on, found pretrain\.average 'snapshots'"):
        align(settings(tiny_data), workdir)


def test_stars_kept_aside_have_no_part(tiny_data, pretrained, aligned, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(pretrained, workdir)
    config = settings(tiny_data)
    held = held_stars(readable_stars(workdir), validation=config.align.validation, seed=config.seed)
    assert 0 < held.sum() < len(held) / 2
    path = workdir / "data" / "survey_A.npz"
    with np.load(path) as old:
        arrays = dict(old)
    changed = np.where(held[:, None], arrays["flux"][::-1] * 0.7 + 0.1, arrays["flux"])
    save_arrays(path, **arrays | {"flux": changed})
    align(settings(tiny_data), workdir)
    assert same(final(aligned), final(workdir))


def test_finished_fine_tuning_from_another_start_is_refused(tiny_data, pretrained, aligned, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(aligned, workdir)
    more = {"split__run": (0,)}
    finetune(settings(tiny_data, "none", **more), workdir)
    with pytest.raises(ValueError, match=r"trained with other settings: config\.align"):
        finetune(settings(tiny_data, **more), workdir)


def test_kind_none_does_nothing(tiny_data, pretrained, caplog):
    before = json.dumps(read_config(pretrained))
    with caplog.at_level("INFO"):
        align(settings(tiny_data, "none"), pretrained)
    assert "nothing to do" in caplog.text
    assert not (pretrained / "align").exists()
    assert json.dumps(read_config(pretrained)) == before
