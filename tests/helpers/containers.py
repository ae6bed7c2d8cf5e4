"""Arrays of spectra as files of each kind that the reader of arrays knows."""

import json
from pathlib import Path

import numpy as np
import pytest

KINDS = ("npz", "npz packed", "h5", "parquet")


def write_arrays(path: Path, kind: str, arrays: dict[str, np.ndarray], *, group: int = 3) -> Path:
    """Writes arrays, whose `wave` all rows share; skips the test where the package for the kind is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.startswith("npz"):
        with path.open("wb") as file:
            (np.savez_compressed if "packed" in kind else np.savez)(file, **arrays)
    elif kind == "h5":
        h5py = pytest.importorskip("h5py", reason="needs h5py (extra `hdf5`)")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                array = np.asarray(array)
                text = array.dtype.kind in "UO"
                more = {"chunks": (2, *array.shape[1:]), "compression": "gzip"} if array.ndim == 2 else {}
                file.create_dataset(
                    name, data=array.astype(object) if text else array,
                    dtype=h5py.string_dtype() if text else None, **more,
                )  # fmt: skip
    else:
        pa = pytest.importorskip("pyarrow", reason="needs pyarrow (extra `parquet`)")
        pytest.importorskip("pyarrow.parquet")
        columns = {
            name: pa.array(list(array))
            for name, array in arrays.items()
            if np.shape(array) != np.shape(arrays["wave"])
        }
        metadata = (
            {"wave": json.dumps(np.asarray(arrays["wave"]).tolist())} if arrays["wave"].ndim == 1 else {}
        )
        if arrays["wave"].ndim == 2:
            columns["wave"] = pa.array(list(arrays["wave"]))
        table = pa.table(columns).replace_schema_metadata(metadata)
        pa.parquet.write_table(table, path, row_group_size=group)
    return path
