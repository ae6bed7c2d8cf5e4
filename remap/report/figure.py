"""What all figures share. Matplotlib (the extra `plots`) is imported by the functions alone.

No figure touches pyplot, so nothing here needs a display or changes a caller's figures. Colours are Okabe
and Ito's, which colour-blind readers can tell apart. The name's ending chooses the format (.png, .pdf, .svg).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from remap.writing import write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SYMBOLS = {"teff": r"$T_\mathrm{eff}$", "logg": r"$\log\,g$", "feh": "[Fe/H]", "vsini": r"$v\,\sin\,i$"}
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


@contextlib.contextmanager
def page(path: str | Path | None, width: float, height: float) -> Iterator[Figure]:
    """A figure of that size in inches, saved at the end unless `path` is None.

    Raises:
      ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'deep-remap[plots]'") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08)  # inches; the default crowds labels between panels
        yield figure
        if path is None:
            return
        path = Path(path)
        kind = path.suffix.removeprefix(".") or matplotlib.rcParams["savefig.format"]
        write_files({path: lambda file: figure.savefig(file, format=kind)})


def axis_name(label: str, unit: str) -> str:
    """A label's symbol with its unit in brackets; "" = no unit."""
    return SYMBOLS.get(label, label) + (f" [{unit}]" if unit else "")
