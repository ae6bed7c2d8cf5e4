"""The embedded synthesiser: physics in the right direction, known limits, the library's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import cumulative_trapezoid
from scipy.special import expn, wofz

from remap.spectra import vacuum_to_air
from remap.synth import (
    ELEMENTS,
    add_weak_lines,
    atoms,
    check_labels,
    check_offsets,
    default_lines,
    element_offsets,
    load_lines,
    make_library,
    synthesize,
    synthesize_batch,
)
from remap.synth.atmosphere import _electron_density, continuum_opacity, model_atmosphere
from remap.synth.atoms import (
    IONISATION,
    LABELS,
    _partition_functions,
    log_saha,
    planck,
    scaled_abundances,
    solar_abundances,
)
from remap.synth.blanketing import line_strength
from remap.synth.lines import voigt

WAVE = 5160.0 + 0.02 * np.arange(8500)
NARROW = WAVE[(WAVE > 5160) & (WAVE < 5262)]  # what gradients are tested on: reverse mode is slow
SUN = (5777.0, 4.44, 0.0, 1.1)
GRID = {
    "teff": [4500.0, 6000.0],
    "logg": [1.5, 4.5],
    "m_h": [-1.0, 0.0],
    "vmic": (2.13, -0.23),
    "logg_floor": [(5750.0, 2.0)],
    "wave_range": (5160.0, 5180.0),
    "wave_step": 0.1,
    "oversample": 4,
    "chunk": 4,
}


@pytest.fixture(scope="module")
def spectrum():
    lines = load_lines()

    def run(offsets=None, **changes):
        labels = dict(zip(LABELS, SUN, strict=True)) | changes
        x = jnp.asarray(list(labels.values()), jnp.float32)
        flux, _ = synthesize(x, lines=lines, wave=WAVE, offsets=offsets)
        return np.asarray(flux)

    return run


def width(flux, low, high):
    """Equivalent width [Å] between two wavelengths."""
    first, last = np.searchsorted(WAVE, (low, high))
    return np.sum(1 - flux[first:last]) * (WAVE[1] - WAVE[0])


def test_voigt_equals_the_faddeeva_function():
    a, u = np.array([1e-3, 1e-2, 0.1, 1.0, 5.0])[:, None], np.linspace(0, 60, 601)[None]
    ours = np.asarray(jax.jit(voigt)(jnp.asarray(a, jnp.float32), jnp.asarray(u, jnp.float32)))
    np.testing.assert_allclose(ours, wofz(u + 1j * a).real, atol=1e-5)  # Hui et al. state 1e-6 in float64


def test_solar_photosphere():
    """Around τ = 1 the Sun has T = 6390 K, log P = 5.06 and log Pe = 1.8 (Holweger & Müller 1974; VAL)."""
    sun = model_atmosphere(jnp.asarray(SUN, jnp.float32))
    log_tau = np.log10(np.asarray(sun.tau))
    electron_pressure = sun.electron_density * 1.380649e-16 * sun.temperature
    assert abs(np.interp(0.0, log_tau, sun.temperature) - 6390) < 150
    assert abs(np.interp(0.0, log_tau, np.log10(sun.pressure)) - 5.06) < 0.15
    assert abs(np.interp(0.0, log_tau, np.log10(electron_pressure)) - 1.8) < 0.2


@pytest.mark.parametrize("offsets", [{}, {"Mg": 0.6, "Na": -1.0, "Fe": 0.3}])
def test_electrons_balance_the_ions(offsets):
    temperature = jnp.linspace(4000.0, 9000.0, 6)
    share = scaled_abundances(0.3, jnp.asarray(element_offsets(**offsets), jnp.float32))
    electrons, hydrogen = jax.jit(_electron_density)(temperature, jnp.full(6, 1e5, jnp.float32), share)
    saha = np.exp(np.asarray(log_saha(temperature), np.float64))
    fraction = saha / (np.asarray(electrons)[:, None] + saha)
    ions = (fraction * np.asarray(share)).sum(axis=1) * np.asarray(hydrogen)
    np.testing.assert_allclose(electrons, ions, rtol=1e-4)  # float32 sums and exponentials


def test_saha_of_hydrogen_against_its_formula():
    """n_e n_II / n_I = (2π m k T / h²)^1.5 e^(-χ/kT) for hydrogen, whose weights cancel."""
    t = 6000.0
    expected = (2 * np.pi * 9.10938e-28 * 1.380649e-16 * t / 6.62607e-27**2) ** 1.5 * np.exp(
        -13.598 / 8.617333e-5 / t
    )
    ours = log_saha(jnp.asarray([t], jnp.float32))[0, ELEMENTS.index("H")]
    assert float(ours) == pytest.approx(np.log(expected), abs=1e-3)


def test_solar_continuum_is_the_observed_one():
    """At 5000 Å the Sun's surface continuum is 9.1e6 erg/s/cm²/Å to a few per cent (Neckel & Labs)."""
    _, continuum = synthesize(
        jnp.asarray(SUN, jnp.float32), lines=load_lines(), wave=np.array([4999.0, 5001.0])
    )
    assert float(continuum.mean()) == pytest.approx(9.1e6, rel=0.12)


def test_without_lines_the_flux_is_the_continuum():
    lines = load_lines()
    flux, _ = synthesize(
        jnp.asarray(SUN, jnp.float32), lines=lines._replace(log_gf=lines.log_gf - 30), wave=WAVE
    )
    np.testing.assert_allclose(flux, 1.0, atol=2e-5)  # two routes to the same integral, in float32


def test_weak_lines_grow_in_proportion():
    """Optically thin limit: the equivalent width is proportional to gf."""
    lines = load_lines()
    only = [
        synthesize(jnp.asarray(SUN, jnp.float32), lines=lines._replace(log_gf=np.where(
            np.abs(lines.wave - 5250.646) < 0.01, gf, -60.0)), wave=WAVE)[0]
        for gf in (-5.2, -5.5)
    ]  # fmt: skip
    one, half = (width(np.asarray(f), 5249, 5252) for f in only)
    assert one / half == pytest.approx(10**0.3, rel=0.02)
    assert 1e-4 < half < 5e-3


def test_iron_grows_with_metallicity_and_falls_with_temperature(spectrum):
    band = (5250.0, 5290.0)
    by_metals = [width(spectrum(m_h=m), *band) for m in (-2.0, -1.0, 0.0, 0.5)]
    by_heat = [width(spectrum(teff=t), *band) for t in (4500.0, 5250.0, 6000.0, 7000.0)]
    assert np.all(np.diff(by_metals) > 0.3)
    assert np.all(np.diff(by_heat) < -0.3)


def test_magnesium_wings_grow_with_gravity(spectrum):
    far = (5178.0, 5181.5)  # between the lines at 5172.7 and 5183.6
    dwarf, giant = (width(spectrum(teff=5000.0, logg=g), *far) for g in (4.8, 2.0))
    assert dwarf > 1.5 * giant


def test_ionised_lines_grow_at_low_gravity(spectrum):
    def ratio(logg):
        flux = spectrum(teff=5500.0, logg=logg)
        return width(flux, 5234.2, 5235.1) / width(flux, 5249.9, 5250.5)  # Fe II 5234.6, Fe I 5250.2

    assert ratio(2.0) > 1.2 * ratio(4.5)


def test_magnesium_alone_moves_its_own_lines(spectrum):
    rich = spectrum(offsets=element_offsets(Mg=0.4))
    triplet, iron = (5166.0, 5186.0), (5250.0, 5290.0)
    assert width(rich, *triplet) > 1.15 * width(spectrum(), *triplet)
    assert width(rich, *iron) == pytest.approx(width(spectrum(), *iron), rel=0.1)
    # what is left is the Mg electrons' H⁻ opacity, which thins the pressure broadening too


def test_electron_donors_act_on_lines_of_others(spectrum):
    """Electrons of Mg make H⁻ opacity, which weakens the lines of Fe II in cool stars."""
    cool = {"teff": 4500.0, "logg": 2.0}
    band = (5234.2, 5235.1)  # Fe II 5234.6
    rich = spectrum(offsets=element_offsets(Mg=1.0), **cool)
    assert width(rich, *band) < 0.95 * width(spectrum(**cool), *band)


def test_offsets_of_all_metals_are_a_metallicity(spectrum):
    metals = element_offsets(**{e: -0.5 for e in ELEMENTS if e != "H"})
    np.testing.assert_allclose(spectrum(offsets=metals), spectrum(m_h=-0.5), atol=2e-4)  # float32


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.zeros(3), "offsets must have shape"),
        (element_offsets(H=0.1), r"\[H/M\] = 0.1 is outside the model's range \[0, 0\]"),
        (element_offsets(Mg=2.5), r"\[Mg/M\] = 2.5 is outside the model's range \[-2, 2\]"),
        (element_offsets(Fe=np.nan), r"\[Fe/M\] = nan"),
    ],
)
def test_offsets_are_checked(offsets, message):
    with pytest.raises(ValueError, match=message):
        check_offsets(offsets)
    with pytest.raises(ValueError, match=message):
        synthesize_batch(np.array([SUN]), lines=load_lines(), wave=WAVE, oversample=1, chunk=1,
                         offsets=offsets[None])  # fmt: skip


def test_one_offset_row_per_star_and_known_elements():
    with pytest.raises(ValueError, match="expected offsets of 1 stars"):
        synthesize_batch(np.array([SUN]), lines=load_lines(), wave=WAVE, oversample=1, chunk=1,
                         offsets=np.zeros((2, len(ELEMENTS))))  # fmt: skip
    with pytest.raises(ValueError, match="found Xx"):
        element_offsets(Xx=0.1)


def test_library_with_an_alpha_axis():
    nodes = {"teff": [5000.0], "logg": [4.5], "m_h": [-1.0]}
    library = make_library(**GRID | nodes | {"alpha": (0.0, 0.4)})
    assert list(library["label_names"]) == [*LABELS, "alpha"]
    np.testing.assert_allclose(library["labels"][:, 4], [0.0, 0.4], rtol=1e-6)
    plain = make_library(**GRID | nodes)
    np.testing.assert_allclose(library["flux"][0], plain["flux"][0], atol=1e-6)
    assert library["flux"][1].mean() < plain["flux"][0].mean() - 0.02  # the Mg triplet is in the range


def test_microturbulence_strengthens_saturated_lines(spectrum):
    assert width(spectrum(vmic=3.0), 5250, 5290) > 1.1 * width(spectrum(vmic=0.5), 5250, 5290)


def test_gradient_equals_a_finite_difference():
    lines = load_lines()
    x = jnp.asarray(SUN, jnp.float32)

    def total(labels):
        return jnp.sum(1 - synthesize(labels, lines=lines, wave=NARROW)[0])

    for i, step in enumerate((20.0, 0.05, 0.02, 0.02)):
        e = jnp.zeros(4).at[i].set(step)
        difference = (total(x + e) - total(x - e)) / 2
        _, gradient = jax.jvp(total, (x,), (e,))
        assert float(gradient) == pytest.approx(float(difference), rel=0.01)  # float32 and curvature


def test_pixels_conserve_equivalent_width(spectrum):
    """Four points per pixel of 0.1 Å see what points of 0.02 Å see."""
    flux, _ = synthesize_batch(np.array([SUN]), lines=load_lines(), wave=WAVE[2::5], oversample=4, chunk=2)
    truth = spectrum().reshape(-1, 5).mean(axis=1)
    np.testing.assert_allclose(flux[0], truth, atol=0.01)
    assert np.sum(1 - flux) == pytest.approx(np.sum(1 - truth), rel=1e-3)


def test_library_arrays(tmp_path):
    library = make_library(**GRID)
    np.testing.assert_allclose(
        library["labels"][:, :3],
        [[4500, 1.5, -1], [4500, 1.5, 0], [4500, 4.5, -1], [4500, 4.5, 0], [6000, 4.5, -1], [6000, 4.5, 0]],
    )  # 6000 K at log g 1.5 lies below the floor
    np.testing.assert_allclose(library["labels"][:, 3], 2.13 - 0.23 * library["labels"][:, 1], rtol=1e-6)
    assert library["flux"].shape == (6, 201)
    assert library["flux"].dtype == np.float32
    assert library["continuum"].shape == (6, library["cont_wave_air"].size)
    assert library["cont_wave_air"][[0, -1]] == pytest.approx(GRID["wave_range"])
    np.testing.assert_allclose(vacuum_to_air(library["wave_vac"]), library["wave_air"], atol=1e-8)
    assert library["flux"].min() > 0
    assert library["flux"].max() < 1.001
    np.savez(tmp_path / "library.npz", **library)
    with np.load(tmp_path / "library.npz") as saved:  # no pickles inside
        np.testing.assert_array_equal(saved["flux"], library["flux"])
    one = make_library(**GRID | {"chunk": 5})
    np.testing.assert_allclose(one["flux"], library["flux"], atol=1e-6)  # the chunk is no part of the result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teff": [9000.0]}, r"teff = 9000 is outside .* \[3900, 7500\]"),
        ({"m_h": [np.nan]}, "m_h = nan"),
        ({"vmic": (0.0, 0.0)}, "vmic = 0 is outside"),
        ({"logg": [1.0], "teff": [6000.0]}, "no node is left"),
        ({"wave_range": (3000.0, 3100.0)}, "outside the model's 4000-8000"),
        ({"wave_range": (5200.0, 5100.0)}, "at least two pixels"),
        ({"oversample": 0}, "oversample and chunk"),
    ],
)
def test_library_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        make_library(**GRID | change)


def test_label_shape_is_checked():
    with pytest.raises(ValueError, match="shape"):
        check_labels(np.zeros((2, 3)))


def test_line_table_is_sound():
    lines = load_lines()
    assert len(lines.wave) > 300
    assert np.all(np.diff(lines.wave) > 0)
    assert lines.wave[0] > 4850
    assert lines.wave[-1] < 5750
    ionisation = IONISATION[lines.element, lines.stage - 1]
    assert np.all(lines.excitation + 12398.42 / lines.wave < ionisation)  # upper levels are bound


# Energies [eV] and statistical weights of the levels that matter below 7000 K, from NIST ASD.
LEVELS = {
    ("Na", 1): [(0.0, 2), (2.102, 2), (2.104, 4), (3.191, 2), (3.617, 10), (3.753, 6), (4.12, 2), (4.284, 24)],
    ("Mg", 1): [(0.0, 1), (2.709, 1), (2.712, 3), (2.717, 5), (4.346, 3), (5.108, 3)],
    ("Ca", 1): [
        (0.0, 1), (1.879, 1), (1.886, 3), (1.899, 5), (2.521, 3), (2.523, 5), (2.526, 7), (2.709, 5),
        (2.933, 3), (3.910, 3), (4.131, 1), (4.443, 26), (4.53, 9), (4.624, 5), (4.68, 15),
    ],
    ("Ca", 2): [(0.0, 2), (1.692, 4), (1.700, 6), (3.123, 2), (3.151, 4)],
    ("Si", 1): [(0.0, 1), (0.0096, 3), (0.0277, 5), (0.781, 5), (1.909, 1), (4.132, 5), (4.93, 9), (5.082, 3)],
    ("Ba", 2): [(0.0, 2), (0.604, 4), (0.704, 6), (2.512, 2), (2.722, 4)],
    ("Fe", 1): [
        (0.0, 9), (0.0516, 7), (0.0873, 5), (0.1101, 3), (0.1213, 1), (0.859, 11), (0.915, 9), (0.958, 7),
        (0.990, 5), (1.011, 3), (1.485, 9), (1.557, 7), (1.608, 5), (2.176, 7), (2.198, 5), (2.223, 3),
        (2.279, 5), (2.424, 3), (2.398, 11), (2.425, 9), (2.449, 7), (2.469, 5), (2.480, 3), (2.404, 13),
        (2.433, 11), (2.453, 9), (2.559, 9), (2.588, 7), (2.609, 5), (2.693, 11), (2.728, 9), (2.759, 7),
        (2.86, 49), (2.89, 9), (2.99, 21), (2.97, 27), (3.23, 25), (3.23, 33), (3.36, 35), (3.6, 15),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("element", "stage"), LEVELS)
@pytest.mark.parametrize("temperature", [4000.0, 5000.0, 6000.0, 7000.0])
def test_partition_functions_are_sums_over_published_levels(element, stage, temperature):
    """U = Σ g exp(-E/kT); the levels left out add a few per cent at 7000 K."""
    energy, weight = np.array(LEVELS[element, stage]).T
    expected = np.sum(weight * np.exp(-energy / (8.617333e-5 * temperature)))
    found = _partition_functions(jnp.asarray([temperature]))[0, ELEMENTS.index(element), stage - 1]
    assert float(found) == pytest.approx(expected, rel=0.2)


def test_saha_against_published_examples():
    """Carroll & Ostlie 2006, sec. 8.1: H at P_e = 20 N/m², and Ca and H in the Sun's photosphere (1.5 N/m²)."""

    def ratio(element, temperature, electron_pressure):
        saha = log_saha(jnp.asarray([temperature]))[0, ELEMENTS.index(element)]
        return float(jnp.exp(saha)) * 1.380649e-16 * temperature / electron_pressure

    for temperature, ionised in ((8300.0, 0.05), (9600.0, 0.5), (11300.0, 0.95)):
        x = ratio("H", temperature, 200.0)
        assert x / (1 + x) == pytest.approx(ionised, abs=0.04)  # temperatures rounded to 100 K
    assert ratio("H", 5777.0, 15.0) == pytest.approx(7.7e-5, rel=0.05)
    assert ratio("Ca", 5777.0, 15.0) == pytest.approx(918.0, rel=0.15)  # whose U are 1.32 and 2.30


def test_thin_line_equals_its_integral():
    """Optically thin limit: W = ∫ l/κ(λ0) dλ weighted by the response of the emergent flux, in NumPy and float64."""
    lines = load_lines()
    centre = 5250.646
    (i,) = np.flatnonzero(np.abs(lines.wave - centre) < 0.01)
    log_gf = np.where(np.arange(len(lines.wave)) == i, -5.7, -60.0)
    wave = centre + 0.005 * np.arange(-120, 121)
    flux, _ = synthesize(jnp.asarray(SUN, jnp.float32), lines=lines._replace(log_gf=log_gf), wave=wave)

    sun = [np.asarray(a, np.float64) for a in model_atmosphere(jnp.asarray(SUN, jnp.float32))]
    tau, temperature, _, electrons, hydrogen = sun
    layers = [jnp.asarray(a, jnp.float32) for a in (temperature, electrons, hydrogen)]
    at = jnp.asarray([5000.0, centre], jnp.float32)
    opacity = np.asarray(continuum_opacity(at, *layers), np.float64)
    share = jnp.asarray(solar_abundances(), jnp.float32)
    absorbers = np.asarray(atoms.absorbers(*layers[:2], share), np.float64)[:, lines.element[i], 0] * hydrogen
    boltzmann = np.exp(-lines.excitation[i] / 8.617333e-5 / temperature)
    emission = -np.expm1(-1.438777e8 / centre / temperature)
    # π e²/(m c²) = 8.8528e-13 cm; times λ² it is the integral of the opacity over wavelength, here in Å
    line = 8.8528e-13 * centre**2 * 1e-8 * 10.0**-5.7 * absorbers * boltzmann * emission / opacity[:, 1]
    source = np.asarray(planck(jnp.float32(centre), jnp.asarray(temperature, jnp.float32)), np.float64)
    fine = np.linspace(np.log(tau[0]), np.log(tau[-1]), 4000)
    ratio = np.exp(np.interp(fine, np.log(tau), np.log(opacity[:, 1] / opacity[:, 0])))
    s, l = (np.interp(fine, np.log(tau), a) for a in (source, line))  # noqa: E741
    start = tau[0] * ratio[0]
    depth = start + cumulative_trapezoid(np.exp(fine) * ratio, fine, initial=0)
    extra = start * l[0] + cumulative_trapezoid(np.exp(fine) * ratio * l, fine, initial=0)
    slope = np.gradient(s, fine)
    # F = S(0) + ∫ 2 E3(t) dS, so a small δt takes away ∫ 2 E2(t) δt dS
    taken = np.trapezoid(2 * expn(2, depth) * extra * slope, fine)
    total = s[0] + np.trapezoid(2 * expn(3, depth) * slope, fine)
    width = np.sum(1 - np.asarray(flux, np.float64)) * 0.005
    assert width == pytest.approx(taken / total, rel=0.05)  # 32 layers and 3 angles against 4000 and all


def test_gradient_with_respect_to_log_gf_equals_a_finite_difference():
    lines = default_lines()
    chosen = [int(np.argmin(np.abs(lines.wave - w))) for w in (5172.684, 5183.604, 5227.19, 5250.646)]
    chosen.append(int(np.flatnonzero(lines.haze & (np.abs(lines.wave - 5220) < 10))[0]))

    def total(change):
        log_gf = jnp.asarray(lines.log_gf, jnp.float32).at[jnp.asarray(chosen)].add(change)
        flux, _ = synthesize(jnp.asarray(SUN, jnp.float32), lines=lines._replace(log_gf=log_gf), wave=NARROW)
        return jnp.sum(1 - flux)

    step = 0.1
    gradient = np.asarray(jax.grad(total)(jnp.zeros(len(chosen))))
    assert np.all(gradient > 0)
    for j in range(len(chosen)):
        e = jnp.zeros(len(chosen)).at[j].set(step)
        difference = float(total(e) - total(-e)) / (2 * step)
        assert gradient[j] == pytest.approx(
            difference, rel=0.02, abs=0.05
        )  # float32 sums of thousands of pixels


def test_gradient_with_respect_to_abundance_equals_a_finite_difference():
    lines = load_lines()

    def total(mg):
        offsets = jnp.zeros(len(ELEMENTS)).at[ELEMENTS.index("Mg")].set(mg)
        labels = jnp.asarray(SUN, jnp.float32)
        return jnp.sum(1 - synthesize(labels, lines=lines, wave=NARROW, offsets=offsets)[0])

    difference = float(total(0.05) - total(-0.05)) / 0.1
    assert float(jax.grad(total)(0.0)) == pytest.approx(difference, rel=0.01)


def test_batch_refuses_labels_out_of_range():
    for i, value in enumerate((3500.0, 6.0, -5.0, 0.0)):
        star = np.array([SUN])
        star[0, i] = value
        with pytest.raises(ValueError, match=f"{LABELS[i]} = {value:g} is outside the model's range"):
            synthesize_batch(star, lines=load_lines(), wave=WAVE, oversample=1, chunk=1)


def test_weak_lines_follow_learners_law():
    table, lines = load_lines(), default_lines()
    strength = line_strength(lines)[lines.element != ELEMENTS.index("H")]
    count = [np.sum(strength > -11.5 - x) for x in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(count, count[0] * np.array([1, 10**0.5, 10.0]), rtol=0.05)
    assert np.sum(~lines.haze) == len(table.wave)
    np.testing.assert_array_equal(lines.wave[~lines.haze], table.wave)
    assert lines.wave.min() >= table.wave.min()
    assert lines.wave.max() <= table.wave.max()
    for again, first in zip(add_weak_lines(table, complete=-11.5, decades=2.0, slope=0.5, spread=25.0, reach=0.6),
                            lines, strict=True):  # fmt: skip
        np.testing.assert_array_equal(again, first)
    with pytest.raises(ValueError, match="expected lines of a strength above"):
        add_weak_lines(table, complete=0.0, decades=2.0, slope=0.5, spread=25.0, reach=0.6)


def test_haze_is_smooth_and_blocks_what_its_lines_would():
    labels, lines = jnp.asarray(SUN, jnp.float32), default_lines()
    weak = lines._replace(log_gf=np.where(lines.haze, lines.log_gf, -60.0))
    haze = np.asarray(synthesize(labels, lines=weak, wave=WAVE)[0])
    placed = np.asarray(synthesize(labels, lines=weak._replace(haze=np.zeros_like(weak.haze)), wave=WAVE)[0])
    assert np.abs(np.diff(haze)).max() < 2e-4
    assert np.mean(1 - haze) == pytest.approx(
        np.mean(1 - placed), rel=0.05
    )  # the bins reach beyond the range
    assert 0.01 < np.mean(1 - haze) < 0.08


def test_hydrogen_line_of_the_sun():
    """The Sun's Hβ has an equivalent width of 3.68 Å (Moore, Minnaert & Houtgast 1966)."""
    lines = load_lines()
    only = lines._replace(log_gf=np.where(lines.element == ELEMENTS.index("H"), lines.log_gf, -60.0))
    wave = 4861.323 + 0.02 * np.arange(-3000, 3001)
    flux, _ = synthesize(jnp.asarray(SUN, jnp.float32), lines=only, wave=wave)
    assert np.sum(1 - np.asarray(flux)) * 0.02 == pytest.approx(3.68, rel=0.15)
