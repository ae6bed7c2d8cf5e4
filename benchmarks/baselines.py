"""Baselines on the same normalised pixels and folds as the network: kernel ridge, PLS, forest, The Cannon.

`bench_miles` runs them. Hyperparameters are chosen by folds inside the training stars, which are the network's
training and validation stars.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import least_squares
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from remap.preprocess.grid import model_inputs
from remap.store.stars import fold_split, split_settings
from remap.store.workdir import load_survey, read_preprocessing

Fit = Callable[
    [np.ndarray, np.ndarray, np.ndarray, int], np.ndarray
]  # x, y, new x, seed -> predictions [S, L]


def normalised_pixels(workdir: Path) -> np.ndarray:
    """float[S, N]: all arms of the survey's stars side by side, normalised as for the network."""
    preprocessing = read_preprocessing(workdir)
    pixels = []
    for arm in preprocessing.arms:
        survey, _ = load_survey(workdir, arm)
        flux, valid = model_inputs(survey.flux, survey.valid)
        pixels.append(np.asarray(jax.jit(preprocessing.normalizer(arm))(flux, valid)))
    return np.concatenate(pixels, axis=1)


def _each_label(make: Callable[[np.ndarray, int], object]) -> Fit:
    """One model per label, with labels scaled to unit variance."""

    def run(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
        mean, scale = y.mean(axis=0), y.std(axis=0)
        columns = [
            np.ravel(make(x, seed).fit(x, (column - m) / s).predict(new)) * s + m
            for column, m, s in zip(y.T, mean, scale, strict=True)
        ]
        return np.stack(columns, axis=1)

    return run


def _ridge(x: np.ndarray, seed: int) -> GridSearchCV:
    grid = {
        "kernelridge__alpha": np.logspace(-4, 0, 9),
        "kernelridge__gamma": np.logspace(-2.5, 0.5, 7) / x.var(axis=0).sum(),
    }
    model = make_pipeline(StandardScaler(with_std=False), KernelRidge(kernel="rbf"))
    return GridSearchCV(model, grid, cv=5, scoring="neg_mean_absolute_error")


def _pls(x: np.ndarray, seed: int) -> GridSearchCV:
    grid = {"n_components": [3, 5, 8, 12, 16, 24]}
    return GridSearchCV(PLSRegression(scale=False), grid, cv=5, scoring="neg_mean_absolute_error")


def _forest(x: np.ndarray, seed: int) -> GridSearchCV:
    model = make_pipeline(PCA(random_state=seed), RandomForestRegressor(200, random_state=seed))
    grid = {"pca__n_components": [10, 25], "randomforestregressor__min_samples_leaf": [1, 3]}
    return GridSearchCV(model, grid, cv=3, scoring="neg_mean_absolute_error")


def cannon(x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Every pixel a quadratic in the labels with a scatter of its own, inverted by least squares.

    Ness et al. 2015 (ApJ 808, 16), eqs. 1-6, without the spectra's own errors, which MILES does not have.
    """
    mean, scale = y.mean(axis=0), y.std(axis=0)
    labels = (y - mean) / scale
    pairs = np.triu_indices(y.shape[1])

    def design(z: np.ndarray) -> np.ndarray:
        z = np.atleast_2d(z)
        return np.concatenate([np.ones((len(z), 1)), z, z[:, pairs[0]] * z[:, pairs[1]]], axis=1)

    coefficients = np.linalg.lstsq(design(labels), x, rcond=None)[0]
    residuals = x - design(labels) @ coefficients
    scatter = np.sqrt(np.sum(residuals**2, axis=0) / (len(x) - len(coefficients)))
    scatter = np.maximum(scatter, 1e-3)
    low, high = labels.min(axis=0) - 1, labels.max(axis=0) + 1
    found = []
    for spectrum in new:
        fits = [
            least_squares(
                lambda z, s=spectrum: ((design(z) @ coefficients)[0] - s) / scatter,
                start,
                bounds=(low, high),
                loss="soft_l1",
            )
            for start in (np.zeros(y.shape[1]), np.full(y.shape[1], -0.7), np.full(y.shape[1], 0.7))
        ]
        found.append(min(fits, key=lambda f: f.cost).x)
    return np.array(found) * scale + mean


METHODS: dict[str, Fit] = {
    "kernel ridge": _each_label(_ridge),
    "partial least squares": _each_label(_pls),
    "random forest on PCA": _each_label(_forest),
    "quadratic in labels (Cannon)": cannon,
}


def held_out_predictions(config, workdir: Path, stars, method: Fit) -> dict[str, np.ndarray]:
    """Per label float[S]: each star by the model of its own fold, stars of none by the mean over folds.

    NaN for stars of folds that are not run.
    """
    x = normalised_pixels(workdir)
    names = list(config.label_names)
    y = np.stack([np.asarray(stars[name], float) for name in names], axis=1)
    total, count = np.zeros(y.shape), np.zeros(len(stars))
    for fold in config.split.run:
        split = fold_split(stars, split_settings(config), fold)
        train, test = np.isin(split, ("train", "val")), np.isin(split, ("test", "other"))
        train &= np.isfinite(y).all(axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, on settings that its search rejects
            total[test] += method(x[train], y[train], x[test], config.seed)
        count[test] += 1
    predicted = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan)
    return {name: predicted[:, j] for j, name in enumerate(names)}
