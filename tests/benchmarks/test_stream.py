"""The benchmark of streams, with few spectra and no workers."""

import argparse
import json

from benchmarks.bench_stream import on_the_way


def test_every_part_is_timed_and_every_second_remembered(tmp_path):
    arguments = argparse.Namespace(count=40, small=True, shard=16, workers=0, output=tmp_path)
    numbers = on_the_way(arguments)
    assert (numbers["count"], numbers["shards"]) == (40, 3)
    assert all(numbers["seconds"][part] > 0 for part in ("normaliser", "network"))
    assert numbers["history"][-1][1] == 40
    json.dumps(numbers)
