"""Settings from a file: they replace fields, tuples stay tuples, the command line has the last word."""

import dataclasses
import json

import ml_collections
import pytest
from absl import flags
from helpers import tiny

from configs import common
from launch import cli
from remap.config import (
    SECTIONS,
    ConfigError,
    apply_overrides,
    config_to_json,
    deciding,
    read_overrides,
    record,
)


@pytest.fixture
def parse(monkeypatch):
    """The config that a launch script gets from its command line."""

    def call(*arguments):
        values = flags.FlagValues()
        holder = cli.define_config(values=values)
        argv = ["launch", f"--config={tiny.REPOSITORY}/tests/helpers/tiny.py", *arguments]
        monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
        values(argv)
        return holder.value

    return call


def write(path, overrides):
    path.write_text(json.dumps(overrides))
    return path


@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")  # as in test_configs
def test_files_come_before_the_command_line_and_later_ones_before_earlier(parse, tmp_path):
    a = write(tmp_path / "a.json", {"model.filters": [8, 16], "pretrain.batch_size": 5, "pretrain.keep": 7})
    b = write(tmp_path / "b.json", {"model.stem_filters": 8, "pretrain.keep": 9, "pretrain.rate_low": 1})
    plain = parse()
    config = parse(f"--override={a}", f"--override={b}", "--config.pretrain.batch_size=3")
    assert config.model.filters == (8, 16)
    assert config.model.stem_filters == 8
    assert (config.pretrain.batch_size, config.pretrain.keep) == (3, 9)
    assert config.pretrain.rate_low == 1.0
    assert isinstance(config.pretrain.rate_low, float)
    assert config.is_locked
    assert (plain.model.filters, plain.pretrain.keep) == ((4, 8), 2)


def test_lists_become_tuples_at_all_depths(tmp_path):
    path = write(tmp_path / "a.json", {"x": [1, [2, {"y": [3]}]]})
    assert read_overrides(path) == {"x": (1, (2, {"y": (3,)}))}


def test_the_config_that_is_given_stays_as_it_is():
    config = common.get_config()
    changed, _ = apply_overrides(config, {"model.filters": (1, 2)}, "test")
    assert (config.model.filters, changed.model.filters) == ((16, 32, 64, 128), (1, 2))


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.filter": (1,)},
            r"f\.json: the config has no field 'model\.filter'; its section has .*'filters'",
        ),
        ({"modle.filters": (1,)}, r"the config has no field 'modle\.filters'"),
        ({"model.filters.first": 1}, r"the config has no field 'model\.filters\.first'"),
        ({"model": 3}, r"'model' is a section, expected one of its fields .*'kernel'.*, found 3"),
        ({"finetune": {"select": {}}}, r"'finetune\.select' is a section, expected one of its fields"),
        ({"model": {"kernels": 3}}, r"the config has no field 'model\.kernels'; its section has .*'kernel'"),
        ({"seed": 1}, r"f\.json: seed is not to be changed here"),
        ({"evaluate": {"snr_edges": (1.0,)}}, r"f\.json: evaluate\.snr_edges is not to be changed here"),
        ({"model.kernel": 3.5}, r"model\.kernel: expected a value like 5, found 3\.5"),
        ({"model.filters": 3}, r"model\.filters: expected a value like \(16, 32, 64, 128\), found 3"),
    ],
)
def test_mistakes_name_file_and_field(overrides, message, locked):
    config = common.get_config()
    if locked:
        config.lock()
    with pytest.raises(ConfigError, match=message):
        apply_overrides(config, overrides, "f.json", fixed=("seed", "evaluate"))


def test_nested_and_dotted_changes_are_the_same_and_told_where_they_differ():
    config = common.get_config()
    nested = {"model": {"kernel": 3, "stem_kernel": 7}, "finetune": {"select": {"logg": (3.0, 5.0)}}}
    dotted = {"model.kernel": 3, "model.stem_kernel": 7, "finetune.select.logg": (3.0, 5.0)}
    mixed = {"model": {"kernel": 3, "stem_kernel": 7}, "finetune.select": {"logg": (3.0, 5.0)}}
    told = ("model.kernel: 5 → 3", "finetune.select.logg: (3.5, 5.5) → (3.0, 5.0)")
    for changes in (nested, dotted, mixed):
        changed, found = apply_overrides(config, changes, "test")
        assert found == told
        assert (changed.model.kernel, changed.finetune.select.logg) == (3, (3.0, 5.0))


def test_every_section_that_decides_something_is_in_a_config():
    plain = config_to_json(tiny.route_config(""))
    for what, names in SECTIONS.items():
        found = deciding(tiny.route_config(""), what, also=("search",))
        assert found.keys() == {*names, "search"} - {"libraries"}
        assert deciding(plain, what, also=("search",)) == found
    assert "interpolate" not in deciding(plain, "data")["library"]
    kept = {k: v for k, v in plain["library"].items() if v or k == "select"}
    assert deciding(plain, "scores")["library"] == kept
    assert "members" not in deciding(plain, "autoencoder")["autoencoder"]


@dataclasses.dataclass(frozen=True)
class Oven:
    """Settings of a test."""

    heat: float
    minutes: int = 10

    def __post_init__(self) -> None:
        if self.heat < 0:
            raise ValueError(f"heat: expected at least 0, found {self.heat}")


def test_a_record_is_built_from_its_section():
    section = ml_collections.ConfigDict({"heat": 200.0})
    assert record(Oven, section, "oven") == Oven(200.0, 10)
    assert record(Oven, {"heat": 1.0, "colour": "red"}, "oven", part=True) == Oven(1.0, 10)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"heat": 1.0, "minute": 3},
            r"oven: unknown fields \['minute'\]; the section has \['heat', 'minutes'\]",
        ),
        ({"minutes": 3}, r"oven: expected the fields \['heat'\], found \['minutes'\]"),
        ({"heat": -1.0}, r"oven: heat: expected at least 0, found -1\.0"),
        ({"heat": "hot"}, r"oven: .*not supported between"),
    ],
)
def test_mistakes_in_a_section_name_it_and_the_field(section, message):
    with pytest.raises(ConfigError, match=message):
        record(Oven, section, "oven")


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[1]", r"found \[1\]")])
def test_a_file_without_overrides_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        read_overrides(path)
    with pytest.raises(FileNotFoundError, match=r"b\.json: expected a JSON file"):
        read_overrides(tmp_path / "b.json")
