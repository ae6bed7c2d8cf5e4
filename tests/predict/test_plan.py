"""Shards of chunks of parts: every part once, groups whole, sizes kept."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from remap.io import Star
from remap.predict.plan import group_stars, make_plan, says_stars


def named(parts):
    return [[Star(name) for name in part] for part in parts]


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.integers(1, 900),
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=2), max_size=60),
)
def test_every_part_is_in_one_shard_with_its_group(sizes, shard, stars):
    sizes = np.array(sizes)
    groups = group_stars(named(stars[: len(sizes)]))
    plan = make_plan(sizes, shard=shard, groups=groups)
    flat = [part for chunks in plan.shards for chunk in chunks for part in chunk]
    assert sorted(flat) == list(range(len(sizes)))
    home = {part: k for k, chunks in enumerate(plan.shards) for chunk in chunks for part in chunk}
    for group in groups:
        assert len({home[part] for part in group}) == 1
    totals = [plan.spectra(k, sizes) for k in range(len(plan.shards))]
    assert sum(totals) == sizes.sum()
    assert all(total >= shard for total in totals[:-1])
    for chunks in plan.shards:
        for chunk in chunks:
            assert list(chunk) == sorted(chunk)
            within = sizes[list(chunk)].sum() <= min(256, shard)
            alone = len(chunk) == 1 or any(chunk[0] in group and len(group) > 1 for group in groups)
            assert within or alone or set(chunk) in [set(group) for group in groups]


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=3), max_size=20))
def test_groups_are_the_connected_components(stars):
    expected = {}
    for i in range(len(stars)):
        reached, todo = set(), [i]
        while todo:
            part = todo.pop()
            if part not in reached:
                reached.add(part)
                todo += [j for j in range(len(stars)) if set(stars[j]) & set(stars[part])]
        expected[min(reached)] = sorted(reached)
    assert group_stars(named(stars)) == [group for _, group in sorted(expected.items()) if len(group) > 1]


def test_parts_whose_stars_lie_near_one_another_are_together():
    a, b, c = (
        Star(name, 10.0, 89.0 + away / 3600, within)
        for name, away, within in (("a", 0.0, 1.5), ("b", 1.4, 1.5), ("c", 1.4, np.nan))
    )
    far = Star("d", 10.0, -89.0, 1.5)
    assert group_stars([[a], [far], [b]]) == [[0, 2]]
    assert group_stars([[a, far], [c], [far]]) == [[0, 1, 2]]
    assert group_stars([[c], [c._replace(name="e")]]) == []


def test_parts_without_groups_are_ranges_that_need_no_memory():
    plan = make_plan(np.ones(5000, int), shard=2048)
    assert [len(chunks) for chunks in plan.shards] == [8, 8, 4]
    assert plan.shards[1][0] == range(2048, 2304)
    assert plan.shards[2][-1] == range(4864, 5000)


def test_declared_stars_are_found_at_any_depth():
    assert says_stars({"format": "any", "options": ({"facts": {"star_id": "OBJECT"}},)})
    assert not says_stars({"format": "table", "facts": {"ra": "RA", "star_id": None}})
