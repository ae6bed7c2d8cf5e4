"""Names, models and checks of PHOENIX-ACES HiRes as published (Husser et al. 2013, table 1)."""

import numpy as np
import pytest
from astropy.io import fits
from helpers import server as fake

from remap import io
from remap.io.phoenix_server import (
    GRID,
    WAVE_NAME,
    Node,
    check_flux,
    check_wave,
    file_name,
    grid_nodes,
    node_of,
    remote_path,
)
from remap.spectra import SpectrumError

SUN = Node(5800, 4.5, 0.0)


def test_the_published_grid():
    nodes = grid_nodes({})
    assert len(nodes) == len(set(nodes))
    # 73 Teff × 13 log g × 9 [M/H]; α in 7 more values for the 41 Teff of 3500-8000 K and the 6 [M/H] of -3 to 0.
    assert len(nodes) == 73 * 13 * 9 + 7 * 41 * 13 * 6
    assert {n.feh for n in nodes} == {-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1}
    assert {n.alpha for n in nodes} == {-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2}
    assert Node(12000, 6.0, 1.0) in nodes
    assert Node(8000, 0.0, -3.0, 1.2) in nodes
    for absent in (
        Node(8200, 0.0, -3.0, 0.2),
        Node(5000, 4.0, 0.5, 0.2),
        Node(3400, 4.0, 0.0, -0.2),
        Node(7100, 4.0, 0),
    ):
        assert absent not in nodes


def test_every_name_leads_back():
    nodes = grid_nodes({})[::23]
    names = [file_name(node) for node in nodes]
    assert len(set(names)) == len(names) > 1000
    assert [node_of(name) for name in names] == nodes
    assert not any("+0.0." in name.split("Alpha")[0] or "Alpha=+0.00" in name for name in names)


@pytest.mark.parametrize(
    ("node", "path"),
    [
        (SUN, "Z-0.0/lte05800-4.50-0.0"),
        (Node(2300, 0.0, 0.5), "Z+0.5/lte02300-0.00+0.5"),
        (Node(12000, 6.0, -4.0), "Z-4.0/lte12000-6.00-4.0"),
        (Node(5800, 4.5, -1.5, 0.2), "Z-1.5.Alpha=+0.20/lte05800-4.50-1.5.Alpha=+0.20"),
        (Node(5800, 4.5, 0.0, -0.2), "Z-0.0.Alpha=-0.20/lte05800-4.50-0.0.Alpha=-0.20"),
        (Node(5800, 4.5, -0.0, -0.0), "Z-0.0/lte05800-4.50-0.0"),
    ],
)
def test_paths_as_on_the_server(node, path):
    assert remote_path(node) == f"{GRID}/{path}.{GRID}-HiRes.fits"


def test_names_that_are_none():
    for name in (WAVE_NAME, "x" + file_name(SUN), file_name(SUN) + ".part", "lte5800-4.5-0.0.fits"):
        with pytest.raises(SpectrumError, match="expected a name like"):
            node_of(name)
    assert node_of(file_name(SUN).replace("-4.50", "+0.50")).logg == -0.5  # a few giants have it


def test_limits_are_included():
    assert grid_nodes({"teff": (6900, 7200), "logg": (4.5, 4.9), "feh": (0, 0), "alpha": (0, 0.1)}) == [
        Node(6900, 4.5, 0.0),
        Node(7000, 4.5, 0.0),
        Node(7200, 4.5, 0.0),
    ]
    with pytest.raises(ValueError, match=r"unknown labels \['vsini'\]"):
        grid_nodes({"vsini": (0, 1)})


@pytest.mark.parametrize(
    ("node", "change", "message"),
    [
        (SUN, {"PHXTEFF": 5900.0}, "teff 5800, .*found teff 5900"),
        (SUN, {"PHXLOGG": 4.0}, "logg 4.5, .*logg 4,"),
        (SUN, {"PHXM_H": -0.5}, "feh 0, .*feh -0.5"),
        (SUN, {"PHXALPHA": 0.2}, "alpha 0, .*alpha 0.2"),
        (SUN, {"PHXALPHA": "none"}, "expected a number for PHXALPHA"),
        (SUN, {"pixels": 99}, f"expected 100 pixels as in {WAVE_NAME}, found 99"),
        (SUN, {"flux": np.zeros(100)}, "found no positive pixel"),
        (SUN, {"flux": np.full(100, np.nan)}, "found no positive pixel"),
    ],
)
def test_another_file_is_refused(tmp_path, node, change, message):
    path = tmp_path / "x.part"
    path.write_bytes(fake.flux_file(node, **{"pixels": 100} | change))
    with pytest.raises(SpectrumError, match=f"x.part: .*{message}"):
        check_flux(path, node, pixels=100)


def test_a_right_file_is_accepted(tmp_path):
    path = tmp_path / "x.part"
    for node in (SUN, Node(4000, 0.0, -1.5, -0.2), Node(12000, 6.0, 1.0)):
        path.write_bytes(fake.flux_file(node, pixels=100))
        assert check_flux(path, node, pixels=100) == 0
    flux = np.ones(100)
    flux[[3, 4, 5]] = -1, np.nan, np.inf
    path.write_bytes(fake.flux_file(SUN, pixels=100, flux=flux))
    assert check_flux(path, SUN, pixels=100) == 3


def test_a_file_that_ends_too_soon_is_refused_wherever_it_ends(tmp_path):
    path, whole = tmp_path / "x.part", fake.flux_file(SUN, pixels=1500)
    data = 2880 + 8640  # where the first HDU ends: what stops just there is a whole file
    for end in [*range(0, len(whole), 401), *(n for n in range(0, len(whole), 2880) if n != data)]:
        path.write_bytes(whole[:end])
        with pytest.raises(SpectrumError, match=r"x\.part"):
            check_flux(path, SUN, pixels=1500)
    for junk in (b"<html>404</html>", whole[:1000] + b"\0" * 4000, b"\x1f\x8b" + whole):
        path.write_bytes(junk)
        with pytest.raises(SpectrumError, match=r"x\.part"):
            check_flux(path, SUN, pixels=1500)


def test_wavelengths(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(fake.wave_file(321))
    assert check_wave(path) == 321
    for wrong in (fake.flux_file(SUN, pixels=50), fake.wave_file(321)[:4000], fake.wave_file(321, -0.1)):
        path.write_bytes(wrong)
        with pytest.raises(SpectrumError, match="w: "):
            check_wave(path)


def test_genuine_files():
    try:
        folder = io.find_data("phoenix/hires_cut")
    except SpectrumError as error:
        pytest.skip(str(error))
    pixels = check_wave(folder / WAVE_NAME)
    flux = folder / file_name(SUN)
    assert check_flux(flux, SUN, pixels=pixels) == 0
    with pytest.raises(SpectrumError, match="expected the labels of its name"):
        check_flux(flux, SUN._replace(teff=5900), pixels=pixels)
    # Medium resolution under the name of HiRes, as it is published.
    with pytest.raises(SpectrumError, match="found 64967"):
        check_flux(folder.parent / "medres" / file_name(SUN), SUN, pixels=pixels)
    assert fits.getheader(flux)["PHXTEFF"] == 5800
