"""What can be wrong with a row of the catalogue, as a bit mask."""

from __future__ import annotations

import enum


class Flag(enum.IntFlag):
    """Bits of the catalogue's int32 column `flags`; 0 means that nothing was noticed.

    A bit, once released, keeps its number and meaning; new ones are appended (30 is the last that fits).
    The thresholds are config fields and so part of the catalogue's provenance.
    """

    LOW_SNR = 1 << 0
    BAD_PIXELS = 1 << 1
    CONTINUUM = 1 << 2
    EDGE = 1 << 3
    MULTIMODAL = 1 << 4
    ARMS_DISAGREE = 1 << 5
    FAR = 1 << 6
    MISSING_ARM = 1 << 7
    UNREADABLE = 1 << 8


_MEANING = {
    Flag.LOW_SNR: "the signal-to-noise ratio is below the threshold",
    Flag.BAD_PIXELS: "more pixels are masked or unusable than the threshold allows",
    Flag.CONTINUUM: "the continuum fit hit a limit, lacked pixels, or is not positive everywhere",
    Flag.EDGE: "the PMF of a label piles up on an edge of its range; the truth may lie outside",
    Flag.MULTIMODAL: "the PMF of a label has several modes; its median may lie between them",
    Flag.ARMS_DISAGREE: "the arms give values of a label that differ by more than their widths allow",
    Flag.FAR: "the spectrum lies far from all training spectra in embedding space",
    Flag.MISSING_ARM: "an arm is not covered, or only in part; the other arms alone were used",
    Flag.UNREADABLE: "the spectrum could not be used; the row holds NaN and `message` says why",
}


def describe() -> dict[int, str]:
    """Bit value -> "NAME: meaning" for every flag, in the order of the bits, for table metadata."""
    return {int(flag): f"{flag.name}: {_MEANING[flag]}" for flag in Flag}
