"""A batch with hostile files among good ones: rows with messages in their places, and the others unchanged."""

import logging

import numpy as np
import pytest
from helpers import tiny

from benchmarks import mutation
from benchmarks.small_files import SAMPLES
from remap.predict.observing import read_and_observe
from remap.preprocess.description import make_preprocessing
from remap.preprocess.observe_settings import ObserveSettings

MUTANTS = 60


@pytest.fixture(scope="module")
def preprocessing():
    config = tiny.get_config()
    config.arms.A.update({"start": 5010.0, "stop": 5050.0, "step": 1.0})
    config.arms.B.update({"start": 5050.0, "stop": 5090.0, "step": 1.0})
    return make_preprocessing(config)


@pytest.mark.parametrize("name", ["image", "table", "text"])
def test_hostile_files_are_rows_of_their_own(tmp_path, preprocessing, name, caplog):
    sample, rng = SAMPLES[name], np.random.default_rng(5)
    good = tmp_path / sample.file
    source = sample.write(good)
    files = []
    for i in range(MUTANTS):
        files.append(tmp_path / f"mutant{i}_{sample.file}")
        files[-1].write_bytes(mutation.mutant(good.read_bytes(), rng))
    files.insert(MUTANTS // 2, good)
    with caplog.at_level(logging.CRITICAL):
        found, (alone,) = (
            read_and_observe(some, preprocessing, source=source, root=None, settings=ObserveSettings())
            for some in (files, [good])
        )
    assert len(found) == len(files)
    bad = [file.name in one.messages[0] for one, file in zip(found, files, strict=True)]
    assert sum(bad) > MUTANTS // 3
    for arm, one in alone.arms.items():
        np.testing.assert_array_equal(found[MUTANTS // 2].arms[arm].flux, one.flux)
