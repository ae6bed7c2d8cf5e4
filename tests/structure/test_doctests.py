"""The examples in docstrings give what they say."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"^\s*>>> ", re.MULTILINE)


def modules() -> dict[str, int]:
    """Modules with examples, and how many lines of them start with a prompt."""
    found = {}
    for file in sorted((ROOT / "remap").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = len(EXAMPLE.findall(file.read_text()))
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize(("name", "count"), modules().items())
def test_examples_give_what_they_say(name, count, capsys):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, capsys.readouterr().out
    assert result.attempted == count  # all are found, those of jitted functions too


def test_the_first_things_a_reader_tries_have_examples():
    assert {"remap.continuum.algorithm1", "remap.labels", "remap.pmf.metrics", "remap.spectra"} <= set(
        modules()
    )
