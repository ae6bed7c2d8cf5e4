"""Algorithm 1 against its plain loop, its properties, its refusals; and the simpler normalisers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.continuum import _kernel as kernel
from remap.continuum import common
from remap.continuum.algorithm1 import ContinuumSettings, normalize, normalize_batch, pixel_width
from remap.continuum.common import ContinuumFlag
from remap.continuum.normalizers import NORMALIZERS, ChebyshevSettings, QuantileSettings, get_normalizer
from remap.continuum.reference import reference

N = 478  # the smallest grid of the benchmark: 0.9 Å pixels over 4850-5280 Å
BINS = tuple(range(2, 12))
SETTINGS = ContinuumSettings(pixel=0.9)
FEW = ContinuumSettings(pixel=0.9, bins=(2, 3, 5), degree=4)  # where compilation would take all the time
RATIO, MAX_STEPS = 0.997, 1000  # three times as coarse as the default, for the sake of the plain loop
COARSE = {"ratio": RATIO, "max_steps": MAX_STEPS}
BITS = ContinuumFlag.STUCK | ContinuumFlag.SHORT_BIN | ContinuumFlag.NOT_POSITIVE


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def library(data_root):
    """250 spectra [250, N] of the LTE library: R near 2,000, a smooth response, SNR 30 to 300."""
    with np.load(data_root / "lte_grid.npz") as file:
        wave, flux = file["wave_air"], file["flux"]
        coarse, continuum = file["cont_wave_air"], file["continuum"]
    rng = np.random.default_rng(0)
    grid = 4850 + 0.9 * np.arange(N)
    u = np.linspace(-1, 1, N)
    spectra = []
    for i in rng.choice(len(flux), 250, replace=False):
        lines = np.convolve(np.interp(grid, wave, flux[i]), [0.1, 0.2, 0.4, 0.2, 0.1], mode="same")
        shape = np.interp(grid, coarse, continuum[i]) * (1 - 0.3 * u**2 + rng.uniform(-0.3, 0.3) * u)
        spectra.append(lines * shape * (1 + rng.normal(size=N) / rng.uniform(30, 300)))
    return np.array(spectra)


@functools.partial(jax.jit, static_argnames=("bins", "patience"))
def descend_one(flux, valid, exceed, relift, bins=BINS, patience=4):
    """The integers of one spectrum [N]. What is static in the public functions is traced: compiled once."""
    z, _, good = common.scale_flux(flux, valid)
    z = jnp.where(good, z, -jnp.inf)
    return kernel.descend(z, exceed=exceed, relift=relift, bins=bins, patience=patience, **COARSE)


def descend(flux, valid, exceed, relift, bins=BINS):
    """The same for spectra [S, N], in a loop: another S is no reason to compile again."""
    return stacked(descend_one(f, v, exceed, relift, bins) for f, v in zip(flux, valid, strict=True))


def normalize_all(flux, valid, method=normalize, settings=SETTINGS):
    """A normaliser's result for spectra [S, N], in a loop."""
    flux, valid = jnp.asarray(flux), jnp.asarray(valid, bool)
    return stacked(method(f, v, settings=settings) for f, v in zip(flux, valid, strict=True))


def stacked(results):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


def star(seed=0, count=N, snr=100.0):
    """A spectrum [N] with lines on a curved continuum, without any file, and that continuum [N]."""
    rng = np.random.default_rng(seed)
    x = np.arange(count)
    lines = np.ones(count)
    for centre, depth in zip(
        rng.uniform(0, count, count // 20), rng.uniform(0.05, 0.7, count // 20), strict=True
    ):
        lines -= depth * lines * np.exp(-0.5 * ((x - centre) / 1.5) ** 2)
    u = x / (count - 1) - 0.5
    shape = 1 + 0.3 * u - 0.4 * u**2
    return lines * shape * (1 + rng.normal(size=count) / snr), shape


def pathological(count=N):
    """name -> (flux[N], valid[N]): what no star looks like but some file does."""
    rng = np.random.default_rng(1)
    x = np.arange(count)
    u = x / (count - 1)
    noise = 1 + 0.01 * rng.normal(size=count)
    every = np.ones(count, bool)
    gap = (x > 0.3 * count) & (x < 0.55 * count)
    spikes = np.where(rng.random(count) < 0.02, 8.0, 1.0)
    sparse = np.zeros(count, bool)
    sparse[kernel.node_pixels(count, 11)] = True
    broken = np.where(rng.random(count) < 0.1, np.nan, noise)
    broken[5], broken[9] = np.inf, -np.inf
    return {
        "step": (np.where(u < 0.37, 0.2, 1.0) * noise, every),
        "ramp up": (0.02 + u * noise, every),
        "ramp down": (1.02 - u * noise, every),
        "steep": (np.exp(-8 * u) * noise, every),
        "gap": (noise, ~gap),
        "gap at the edge": (noise, u > 0.2),
        "left half gone": (noise, u > 0.5),
        "spikes": (noise * spikes, every),
        "one spike": (noise * np.where(x == 200, 1e4, 1.0), every),
        "emission": (noise * (1 + 3 * np.exp(-0.5 * ((x - 100) / 4) ** 2)), every),
        "constant": (np.ones(count), every),
        "negative edge": (np.where(u > 0.85, -0.3, 1.0) * noise, every),
        "nearly nothing in a bin": (np.where((u > 0.4) & (u < 0.5), 1e-9, 1.0) * noise, every),
        "one pixel per bin": (noise, sparse),
        "one pixel": (noise, x == 77),
        "not finite": (broken, every),
        "noise around zero": (rng.normal(size=count), every),
        "alternating": (np.where(x % 2, 1.0, -1.0) * noise, every),
        "comb": (np.where(x % 13 == 0, 1.0, 1e-3) * noise, every),
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("relift", [1.0, 1.05])
class TestPlainLoop:
    def test_library(self, library, relift):
        """With the two values of relift, 500 descents; nodes to rounding, since E is carried by other sums."""
        found = descend(library, np.ones(library.shape, bool), 5, relift)
        for i, flux in enumerate(library):
            plain = reference(flux, np.ones(N, bool), exceed=5, sigma=0, relift=relift, **COARSE)
            np.testing.assert_array_equal(found.steps[i], np.concatenate(plain.steps))
            np.testing.assert_allclose(found.nodes[i] * flux.max(), plain.nodes, rtol=1e-12)

    def test_pathological(self, relift):
        cases = pathological()
        flux, valid = (np.array(part) for part in zip(*cases.values(), strict=True))
        found = descend(flux, valid, 5, relift)
        for i, name in enumerate(cases):
            plain = reference(flux[i], valid[i], exceed=5, sigma=0, relift=relift, **COARSE)
            np.testing.assert_array_equal(found.steps[i], np.concatenate(plain.steps), err_msg=name)
            assert found.stuck[i] == plain.stuck, name
            assert found.short[i] == plain.short, name
            assert np.all(np.isfinite(found.nodes[i])), name

    def test_lock_step(self, relift):
        """Trying a jump at every step, as a batch on a GPU does, gives the same integers."""
        cases = [star(seed) for seed in range(6)]
        flux = np.array([flux for flux, _ in cases] + [case for case, _ in pathological().values()][:6])
        flux = np.where(np.isfinite(flux), flux, 0.0)
        valid = np.ones(flux.shape, bool)
        bins = (2, 3, 4, 5, 11)
        one_by_one = descend(flux, valid, 5, relift, bins)
        lock_step = functools.partial(descend_one, exceed=5, relift=relift, bins=bins, patience=0)
        np.testing.assert_array_equal(one_by_one.steps, jax.vmap(lock_step)(flux, valid).steps)


@pytest.mark.usefixtures("x64")
def test_continuum_equals_the_plain_loop():
    """The public function: continuum to 1e-12, flux, nodes and flags; with the final matrix and both scales."""
    cases = [(star(seed)[0] * 1e-14, np.arange(N) % 50 != seed) for seed in range(5)]
    cases += [
        pathological()[name] for name in ("gap", "left half gone", "negative edge", "spikes", "ramp up")
    ]
    flux, valid = (np.array(part) for part in zip(*cases, strict=True))
    found = normalize_all(flux, valid)
    assert found.flux.dtype == found.continuum.dtype == np.float64
    for i in range(len(cases)):
        plain = reference(flux[i], valid[i], exceed=SETTINGS.exceed_for(N), sigma=15 / 0.9)
        size = np.max(np.abs(plain.continuum))
        np.testing.assert_allclose(found.continuum[i], plain.continuum, rtol=0, atol=1e-12 * size)
        np.testing.assert_allclose(found.nodes[i], plain.nodes, rtol=1e-12)
        away = np.abs(plain.continuum) > 1e-6 * size  # near a zero the quotient magnifies rounding
        np.testing.assert_allclose(found.flux[i][away], plain.flux[away], rtol=1e-9, atol=1e-12)
        expected = int(plain.stuck) + 2 * int(plain.short) + 4 * bool(np.any(plain.continuum <= 0))
        assert found.flags[i] == expected


@pytest.mark.usefixtures("x64")
def test_marvels_grid():
    """N = 4300, where rows are cut in pieces and sums have many slices."""
    bins = (2, 3, 11)
    flux = np.array([star(seed, 4300)[0] for seed in range(3)])
    found = descend(flux, np.ones(flux.shape, bool), 20, 1.05, bins)
    for i in range(3):
        plain = reference(flux[i], np.ones(4300, bool), exceed=20, sigma=0, bins=bins, **COARSE)
        np.testing.assert_array_equal(found.steps[i], np.concatenate(plain.steps))


def test_float32():
    """In float32 a pixel within rounding of the continuum can fall on either side, which shifts a node by a step.

    Of 2000 spectra of the library at N = 4300, 1 in 100 had a k other than in float64, and no continuum moved by
    more than 0.5 %: five steps of 0.1 %.
    """
    flux = np.array([star(seed)[0] for seed in range(40)])
    found = normalize_all(flux.astype(np.float32), np.ones(flux.shape, bool))
    assert found.flux.dtype == found.nodes.dtype == np.float32
    same = 0
    for i in range(40):
        plain = reference(flux[i], np.ones(N, bool), exceed=SETTINGS.exceed_for(N), sigma=15 / 0.9)
        off = np.max(np.abs(found.continuum[i] / plain.continuum - 1))
        same += off < 1e-5  # rounding alone; a step is 1e-3
        assert off < 5e-3
    assert same >= 36


def test_continuum_is_close_to_the_truth():
    for seed in range(5):
        flux, truth = star(seed, snr=200.0)
        found = normalize(jnp.asarray(flux), jnp.ones(N, bool), settings=SETTINGS)
        # Half a dozen pixels of each bin end above it, so it lies within a few per cent of the truth.
        assert abs(np.mean(found.continuum / truth) - 1) < 0.02
        assert np.std(found.continuum / truth) < 0.02
        assert found.flags == 0


class TestProperties:
    def test_scale_does_not_matter(self):
        flux, _ = star()
        valid = jnp.ones(N, bool)
        one = normalize(jnp.asarray(flux, jnp.float32), valid, settings=SETTINGS)
        for factor in (2.0**-60, 2.0**60):  # powers of two, so that rounding is the same
            other = normalize(jnp.asarray(flux * factor, jnp.float32), valid, settings=SETTINGS)
            np.testing.assert_array_equal(one.flux, other.flux)
            np.testing.assert_array_equal(one.continuum * np.float32(factor), other.continuum)

    def test_invalid_pixels_have_no_influence(self):
        flux, _ = star()
        valid = np.arange(N) % 7 != 0
        results = []
        for garbage in (0.0, np.nan, np.inf, -np.inf, 1e30, -1e30):
            dirty = jnp.asarray(np.where(valid, flux, garbage), jnp.float32)
            results.append(normalize(dirty, jnp.asarray(valid), settings=SETTINGS))
        for other in results[1:]:
            jax.tree.map(np.testing.assert_array_equal, results[0], other)
        assert np.all(results[0].flux[~valid] == 1)
        assert np.all(results[0].flux[valid] != 1)

    @pytest.mark.usefixtures("x64")
    def test_reversal(self):
        """Mirror-symmetric where the bins are: odd bin counts that divide N into odd parts."""
        count, bins = 495, (3, 5, 9)
        flux = np.array([star(seed, count)[0] for seed in range(10)])
        there, back = (descend(f, np.ones(f.shape, bool), 3, 1.05, bins) for f in (flux, flux[:, ::-1]))
        first = 0
        for v in bins:
            np.testing.assert_array_equal(
                there.steps[:, first : first + v], back.steps[:, first : first + v][:, ::-1]
            )
            first += v
        np.testing.assert_allclose(there.nodes, back.nodes[:, ::-1], rtol=1e-12)
        final = kernel.final_matrix(count, 9, 6, 10.0)
        np.testing.assert_allclose(
            final @ there.nodes.T, (final @ np.array(back.nodes).T)[::-1], rtol=1e-10
        )  # the polynomial's coefficients reach 1e2

    @pytest.mark.usefixtures("x64")
    def test_more_pixels_above_means_a_lower_continuum(self):
        flux = np.array([star(seed)[0] for seed in range(20)])
        valid = np.ones(flux.shape, bool)
        heights, first = [], []
        for exceed in (2, 4, 8, 16):
            found = descend(flux, valid, exceed, 1.05)
            heights.append(np.mean(found.nodes, axis=1))
            first.append(np.min(found.steps[:, :2], axis=1))
        assert np.all(np.diff(first, axis=0) >= 0)  # the first descent is one line: strictly in order
        assert np.all(np.diff(heights, axis=0) < 0)

    @pytest.mark.usefixtures("x64")
    def test_that_many_pixels_end_above(self):
        """What the loop promises: every bin of the last stage has at least a pixels at or above the continuum."""
        flux = np.array([star(seed)[0] for seed in range(20)])
        found = descend(flux, np.ones(flux.shape, bool), 5, 1.05)
        matrix = kernel._stage_matrix(N, 11)
        edges = [i * N // 11 for i in range(11)]
        for row, nodes in zip(flux, np.array(found.nodes), strict=True):
            above = np.add.reduceat((row / row.max() >= matrix @ nodes).astype(int), edges)
            assert above.min() >= 5

    def test_vmap_jit_and_mappings(self):
        flux = jnp.asarray(np.array([star(seed)[0] for seed in range(3)]), jnp.float32)
        valid = jnp.ones(flux.shape, bool)
        one = jax.jit(functools.partial(normalize, settings=FEW))
        expected = normalize_all(flux, valid, settings=FEW)
        for result in (
            jax.vmap(one)(flux, valid),
            normalize_batch(flux, valid, settings=FEW),
            normalize_batch(flux, valid, settings=FEW, mapping="lock-step"),
        ):
            np.testing.assert_allclose(result.flux, expected.flux, rtol=1e-5)  # sums in another order
            np.testing.assert_array_equal(result.flags, expected.flags)
            assert result.nodes.shape == (3, 5)

    def test_no_retracing(self, monkeypatch):
        traced = []
        plain = kernel.descend
        monkeypatch.setattr(kernel, "descend", lambda *a, **k: traced.append(1) or plain(*a, **k))
        flux = jnp.ones((2, 60), jnp.float32)
        for scale in (1.0, 2.0, 3.0):
            settings = ContinuumSettings(bins=(2, 3), degree=1)  # equal, not the same
            normalize_batch(flux * scale, flux > 0, settings=settings)
        assert len(traced) == 1


class TestWorstCase:
    def test_ends_within_the_bound(self):
        """Every bin holds one pixel that the continuum can never reach, far apart in height."""
        rng = np.random.default_rng(0)
        flux = 10.0 ** rng.uniform(-30, 0, (4, N))
        found = descend(flux.astype(np.float32), np.ones(flux.shape, bool), 5, 1.05)
        assert np.all(found.sweeps <= sum(v * MAX_STEPS + 1 for v in BINS))
        assert np.all(found.stuck)
        assert np.all(np.isfinite(found.nodes))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_nothing_infinite_leaves(self, dtype, request):
        if dtype == np.float64:
            request.getfixturevalue("x64")
        tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
        cases = list(pathological().values())
        for value in (0.0, -1.0, np.nan, np.inf, -np.inf, tiny, tiny / 8, huge):
            cases.append((np.full(N, value), np.ones(N, bool)))
        cases.append((np.where(np.arange(N) % 2, -huge, 1e-3), np.ones(N, bool)))
        cases.append((np.linspace(-0.25, 1, N) * huge, np.ones(N, bool)))
        cases.append((star()[0], np.zeros(N, bool)))
        flux, valid = (np.array(part) for part in zip(*cases, strict=True))
        found = normalize_all(flux.astype(dtype), valid)
        for part in found[:3]:
            assert np.all(np.isfinite(part))
        assert found.flags[-1] == ContinuumFlag.NO_SIGNAL
        assert np.all(found.flux[-1] == 1)
        assert np.all(found.continuum[-1] == 1)
        hopeless = slice(len(pathological()), len(pathological()) + 5)
        assert np.all(found.flags[hopeless] == ContinuumFlag.NO_SIGNAL)

    def test_flags(self):
        cases = pathological()
        names = ("spikes", "one pixel per bin", "left half gone", "constant")
        flux, valid = (np.array(part) for part in zip(*map(cases.get, names), strict=True))
        flags = normalize_all(flux.astype(np.float32), valid).flags
        assert flags[0] == flags[3] == 0
        assert flags[1] & ContinuumFlag.SHORT_BIN
        assert flags[2] & ContinuumFlag.SHORT_BIN


class TestSettings:
    def test_exceed(self):
        assert ContinuumSettings().exceed_for(4300) == 20
        assert ContinuumSettings().exceed_for(44) == 2
        assert ContinuumSettings(snr=100).exceed_for(4300) == 20
        assert ContinuumSettings(snr=200).exceed_for(4300) == 10
        assert ContinuumSettings(exceed=7).exceed_for(4300) == 7

    def test_snr_reaches_the_loop(self):
        flux, _ = star()
        same = [
            normalize(jnp.asarray(flux), jnp.ones(N, bool), settings=dataclasses.replace(SETTINGS, **change))
            for change in ({"snr": 100.0}, {"exceed": 2})
        ]
        np.testing.assert_array_equal(same[0].flux, same[1].flux)

    def test_pixel_width(self):
        assert pixel_width(4850 + 0.1 * np.arange(4300)) == pytest.approx(0.1)
        assert pixel_width(5000 * np.exp(2e-5 * np.arange(1001))) == pytest.approx(0.1, rel=0.02)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"exceed": 5, "snr": 100.0},
            {"exceed": 0},
            {"snr": 0.0},
            {"snr": float("nan")},
            {"ratio": 1.0},
            {"bins": (3, 2)},
            {"bins": ()},
            {"bins": (1, 2)},
            {"bins": (2, 12)},
            {"bins": [2, 3]},
            {"relift": 0.9},
            {"max_steps": 0},
            {"degree": 11},
            {"degree": 0},
            {"sigma": -1.0},
            {"pixel": 0.0},
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_refused(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ContinuumSettings(**wrong)

    @pytest.mark.usefixtures("unchecked")
    def test_shapes_refused(self):
        with pytest.raises(ValueError, match="44"):
            normalize(jnp.ones(43), jnp.ones(43, bool))
        with pytest.raises(ValueError, match=r"\[N\]"):
            normalize(jnp.ones((2, 50)), jnp.ones((2, 50), bool))
        with pytest.raises(ValueError, match=r"\[S, N\]"):
            normalize_batch(jnp.ones((2, 50)), jnp.ones((2, 51), bool))
        with pytest.raises(ValueError, match="float"):
            normalize(jnp.ones(50, jnp.int32), jnp.ones(50, bool))
        with pytest.raises(ValueError, match="mapping"):
            normalize_batch(jnp.ones((2, 50)), jnp.ones((2, 50), bool), mapping="round robin")

    def test_smallest_grid(self):
        result = normalize(jnp.asarray(star(count=44)[0]), jnp.ones(44, bool))
        assert np.all(np.isfinite(result.flux))
        assert result.nodes.shape == (11,)


class TestNormalizers:
    @pytest.mark.parametrize("name", ["chebyshev", "quantile"])
    def test_close_to_the_truth(self, name):
        method = get_normalizer(name)
        settings = QuantileSettings(pixel=0.9, quantile=0.9) if name == "quantile" else ChebyshevSettings()
        flux, truth = (np.array(part) for part in zip(*map(star, range(10)), strict=True))
        found = method.normalize_batch(flux.astype(np.float32), np.ones(flux.shape, bool), settings=settings)
        assert abs(np.mean(found.continuum / truth) - 1) < 0.03
        assert np.std(found.continuum / truth) < 0.03
        np.testing.assert_allclose(found.flux * found.continuum, flux, rtol=1e-5)

    @pytest.mark.parametrize("name", ["chebyshev", "quantile"])
    def test_like_algorithm1(self, name):
        """One call signature: masks, scales, flags and refusals are the same."""
        method = get_normalizer(name)
        settings = method.settings()
        cases = [(star()[0], np.zeros(N, bool)), (star()[0], np.arange(N) > 300), *pathological().values()]
        flux, valid = (np.array(part) for part in zip(*cases, strict=True))
        found = normalize_all(flux.astype(np.float32), valid, method.normalize, settings)
        assert found.flags[0] == ContinuumFlag.NO_SIGNAL
        assert np.all(found.flags[1:] <= BITS)
        for part in found[:3]:
            assert np.all(np.isfinite(part))
        assert np.all(found.flux[~valid] == 1)
        dirty = np.where(valid, flux, 1e6)
        clean, dirty = (
            method.normalize(jnp.asarray(f[1], jnp.float32), jnp.asarray(valid[1]), settings=settings)
            for f in (flux, dirty)
        )
        np.testing.assert_array_equal(clean.flux, dirty.flux)
        with pytest.raises(ValueError, match="44"):
            method.normalize(jnp.ones(43), jnp.ones(43, bool), settings=settings)

    def test_chebyshev_against_numpy(self):
        """With everything inside the clipping it is a plain least-squares series."""
        u = np.linspace(-1, 1, N)
        flux = 1 + 0.2 * u - 0.3 * u**2 + 0.01 * np.random.default_rng(0).normal(size=N)
        valid = np.arange(N) % 3 != 0
        settings = ChebyshevSettings(degree=3, low=50, high=50, iterations=2)
        found = normalize_of("chebyshev", flux, valid, settings)
        series = np.polynomial.Chebyshev.fit(u[valid], flux[valid], 3, domain=[-1, 1])
        np.testing.assert_allclose(found.continuum, series(u), rtol=1e-5)  # float32

    def test_quantile_against_numpy(self):
        """A window's node is NumPy's quantile of its valid pixels."""
        flux, _ = star()
        valid = np.arange(N) % 3 != 0
        found = normalize_of("quantile", flux, valid, QuantileSettings(pixel=0.9, quantile=0.8, width=36.0))
        expected = np.quantile(flux[:40][valid[:40]], 0.8)
        np.testing.assert_allclose(found.nodes[0], expected, rtol=1e-5)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="algorithm1"):
            get_normalizer("magic")
        assert set(NORMALIZERS) == {"algorithm1", "chebyshev", "quantile"}

    @pytest.mark.parametrize(
        ("settings", "wrong"),
        [
            (ChebyshevSettings, {"degree": -1}),
            (ChebyshevSettings, {"low": 0.0}),
            (ChebyshevSettings, {"iterations": 0}),
            (QuantileSettings, {"quantile": 1.5}),
            (QuantileSettings, {"width": -1.0}),
        ],
    )
    def test_refused(self, settings, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings(**wrong)


def normalize_of(name, flux, valid, settings):
    return get_normalizer(name).normalize(
        jnp.asarray(flux, jnp.float32), jnp.asarray(valid), settings=settings
    )
