"""What the columns of a catalogue are: their descriptions, and their UCDs (IVOA UCD1+, version 1.5)."""

from __future__ import annotations

SUMMARY = {  # suffix of the column -> description; entropy alone does not have the label's unit
    "": "median of the PMF",
    "_p16": "16th percentile of the PMF",
    "_p84": "84th percentile of the PMF",
    "_mean": "mean of the PMF",
    "_std": "standard deviation of the PMF",
    "_mode": "centre of the most probable bin",
    "_entropy": "entropy of the PMF in nats",
}

_QUANTITIES = {
    "teff": "phys.temperature.effective",
    "logg": "phys.gravity",
    "feh": "phys.abund.Fe",
    "fe_h": "phys.abund.Fe",
    "mh": "phys.abund.Z",
    "m_h": "phys.abund.Z",
    "afe": "phys.abund",
    "alpha": "phys.abund",
    "alpha_fe": "phys.abund",
    "alpha_m": "phys.abund",
    "vsini": "phys.veloc.rotat",
    "vmic": "phys.veloc.microTurb",
}
# Limits of intervals as the tables of Gaia have them. {} is the quantity.
_STATISTICS = {
    "": "{};stat.median",
    "_p16": "{};stat.min",
    "_p84": "{};stat.max",
    "_mean": "{};stat.mean",
    "_std": "stat.stdev;{}",
    "_mode": "{}",
    "_entropy": "stat.param;{}",
}
_OTHERS = {
    "file": "meta.id;meta.file",
    "star_id": "meta.id;meta.main",
    "ra": "pos.eq.ra;meta.main",
    "dec": "pos.eq.dec;meta.main",
    "dwarf_probability": "stat.probability;src.class.luminosity",
    "luminosity_class": "src.class.luminosity",
    "flags": "meta.code.qual",
    "snr": "stat.snr",
    "rv": "spect.dopplerVeloc",
    "rv_err": "stat.error;spect.dopplerVeloc",
    "exposures": "meta.number;obs.exposure",
    "arms": "instr.bandpass",
    "message": "meta.note",
}


def ucd(column: str) -> str:
    """UCD of a column that belongs to no label; "" where there is none for it.

    Examples:
      >>> ucd("ra")
      'pos.eq.ra;meta.main'
    """
    return _OTHERS.get(column, "")


def label_ucd(label: str, suffix: str = "") -> str:
    """UCD of a label's median, or of one of its other columns; "" for labels that UCDs have no word for.

    Args:
      suffix: a key of `SUMMARY`.

    Examples:
      >>> label_ucd("teff", "_std")
      'stat.stdev;phys.temperature.effective'
    """
    return _STATISTICS[suffix].format(_QUANTITIES[label]) if label in _QUANTITIES else ""
