"""Which row of a table belongs to which file: by its path, its name, or its name without the ending."""

from __future__ import annotations

import collections
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from remap.config import ConfigError
from remap.spectra import SpectrumError

logger = logging.getLogger(__name__)

# From the strictest on: what counts are the folders and the ending, the folders alone, the ending alone, neither.
RULES = ("path", "path_stem", "name", "stem")
_ENDING = re.compile(
    r"(?:\.(?:fits|fit|fts|txt|dat|csv|ecsv|asc|ascii|spec|npz))?(?:\.(?:gz|bz2|fz|xz|z))?$", re.I
)


def match_rows(
    names: Sequence[str], files: Iterable[Path], *, rule: str | None = None, where: str | Path = "table"
) -> np.ndarray:
    """The row of a table to which each file belongs.

    A name and a file are the same
      by "path": where the path of the file ends with all parts of the name, so that `night1/a.fits` is
        `/data/survey/night1/a.fits` and `a.fits` is every `a.fits`;
      by "path_stem": the same without endings such as `.fits`, `.FITS` or `.fits.gz`;
      by "name": where what comes after the last folder is the same;
      by "stem": the same without endings.
    Accents may be composed or not. By default all rows go by the first of these rules by which any row has a file.
    Rows to which only a looser rule would give one are counted in a warning; another tells that no row has any.

    Args:
      names: R names, of files or of stars.
      files: F paths.
      rule: one of `RULES`, or None.
      where: the table, for messages.

    Returns:
      int64[F], -1 where no row belongs to the file.

    Raises:
      SpectrumError: two files for one row, or two rows for one file.
      ConfigError: another rule.

    Examples:
      >>> from pathlib import Path
      >>> match_rows(["b", "a"], [Path("survey/a.fits"), Path("survey/b.fits.gz"), Path("survey/c.fits")])
      array([ 1,  0, -1])
    """
    if rule is not None and rule not in RULES:
        raise ConfigError(f"match must be one of {RULES}, found {rule!r}")
    files = [Path(file) for file in files]
    paths, rows = [_parts(file.absolute().as_posix()) for file in files], [_parts(name) for name in names]
    for used in (rule,) if rule else RULES:
        found = _candidates(rows, paths, used)
        if found:
            break
    if not found and files and names:
        logger.warning(
            "%s: none of %d rows (such as %r) is that of any of %d files (such as %s)",
            *(where, len(names), names[0], len(files), files[0]),
        )
    hint = f"; rows and files were matched by {used!r}: let the names tell them apart, or set match to another rule"
    of_file = {}
    for row, several in found.items():
        if len(several) > 1:
            told = ", ".join(str(files[i]) for i in several[:3])
            raise SpectrumError(f"{where}: expected one file for {names[row]!r}, found {told}{hint}")
        if (other := of_file.setdefault(several[0], row)) != row:
            told = f"{names[other]!r} (row {other}) and {names[row]!r} (row {row})"
            raise SpectrumError(f"{where}: expected one row for {files[several[0]]}, found {told}{hint}")
    logger.info("%s: %d of %d rows have a file, by %r", where, len(found), len(names), used)
    more = len(_candidates(rows, paths, RULES[-1]).keys() - found.keys()) if len(found) < len(names) else 0
    if more:
        logger.warning(
            "%s: %d rows have no file by %r, but would by a looser rule: set match to one of %s for that",
            *(where, more, used, RULES[RULES.index(used) + 1 :]),
        )
    out = np.full(len(files), -1, np.int64)
    out[list(of_file)] = list(of_file.values())
    return out


def distinct_names(files: Sequence[Path]) -> list[str]:
    """A name for each file: the last part of its path, or as much of the path as tells all of them apart.

    Examples:
      >>> from pathlib import Path
      >>> distinct_names([Path("survey/1/a.fits"), Path("survey/2/a.fits")])
      ['1/a.fits', '2/a.fits']
    """
    parts = [Path(file).as_posix().split("/") for file in files]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def _parts(path: str) -> tuple[str, ...]:
    """The parts of a path, accents composed; Windows' separators are as good as others."""
    path = unicodedata.normalize("NFC", path).replace("\\", "/")
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _candidates(
    rows: Sequence[tuple[str, ...]], files: Sequence[tuple[str, ...]], rule: str
) -> dict[int, list[int]]:
    """The files of every row that has some, by a rule. In time of rows plus files, however many share a name."""

    def key(parts: tuple[str, ...]) -> tuple[str, ...]:
        last = parts[-1] if rule in ("path", "name") else _ENDING.sub("", parts[-1])
        return (*parts[:-1], last) if rule.startswith("path") else (last,)

    keys = {i: key(parts) for i, parts in enumerate(rows) if parts}
    index = {}
    for length in {len(k) for k in keys.values()}:
        of_length = index[length] = collections.defaultdict(list)
        for j, parts in enumerate(files):
            whole = key(parts)
            if len(whole) >= length:
                of_length[whole[-length:]].append(j)
    return {i: index[len(k)][k] for i, k in keys.items() if k in index[len(k)]}
