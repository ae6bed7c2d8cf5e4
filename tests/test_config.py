"""Settings from a file: they replace fields, tuples stay tuples, the command line has the last word."""

import json

import pytest
from absl import flags
from helpers import tiny

from configs import common
from launch import cli
from remap.config import apply_overrides, read_overrides


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
    changed = apply_overrides(config, {"model.filters": (1, 2)}, "test")
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
        ({"model": {"kernel": 3}}, r"'model' is a section, expected one of its fields .*'kernel'"),
        ({"model.kernel": 3.5}, r"model\.kernel: expected a value like 5, found 3\.5"),
        ({"model.filters": 3}, r"model\.filters: expected a value like \(16, 32, 64, 128\), found 3"),
    ],
)
def test_mistakes_name_file_and_field(overrides, message, locked):
    config = common.get_config()
    if locked:
        config.lock()
    with pytest.raises(ValueError, match=message):
        apply_overrides(config, overrides, "f.json")


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[1]", r"found \[1\]")])
def test_a_file_without_overrides_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        read_overrides(path)
    with pytest.raises(FileNotFoundError, match=r"b\.json: expected a JSON file"):
        read_overrides(tmp_path / "b.json")
