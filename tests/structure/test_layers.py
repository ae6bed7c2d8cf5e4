"""The packages are layers: an import may only go to an earlier line of this list, or stay in its own package."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    ("remap.spectra", "remap.labels", "remap.config", "remap.continuum", "remap.pmf", "remap._version"),
    ("remap.sharding",),
    ("remap.writing",),
    ("remap.io", "remap.preprocess", "remap.sampling", "remap.network"),
    ("remap.store", "remap.synth", "remap.report", "remap.surveys"),
    ("remap.train", "remap.predict"),
    ("remap.stages", "remap.autoencoder"),
    ("remap.studies",),
    ("remap.command",),
    ("launch",),
    ("benchmarks",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> dict[str, Path]:
    files = [f for top in ("remap", "launch", "benchmarks") for f in (ROOT / top).rglob("*.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def room(module: str) -> str:
    """The package, or file of `remap/` itself, that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "remap" else parts[0]


def imports(source: str) -> list[str]:
    """Modules of the project that a source imports, wherever in it; `from remap import x` is an import of x."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where they go"
            parent = node.module or ""
            found += [f"{parent}.{alias.name}" if parent == "remap" else parent for alias in node.names]
    return [name for name in found if re.match(r"(remap|launch|benchmarks|configs)\b", name)]


def upward(module: str, source: str) -> list[str]:
    """The imports of a module that go up, or sideways into another room."""
    own = room(module)
    return [
        name
        for name in imports(source)
        if room(name) != own and not LEVEL.get(room(name), len(LAYERS)) < LEVEL.get(own, -1)
    ]


def test_every_file_has_a_room():
    rooms = {room(module) for module in modules()} - {"remap"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("module", sorted(set(modules()) - {"remap"}))
def test_imports_go_to_earlier_lines(module):
    assert upward(module, modules()[module].read_text()) == []


def test_the_design_has_these_layers():
    text = (ROOT / "docs" / "design.md").read_text()
    section = text[text.index("## Layers") : text.index("## Decisions")]
    lines = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    named = [tuple(re.findall(r"`((?:remap\.)?\w+)`", line.split("\n\n")[0])) for line in lines]
    assert tuple(named) == LAYERS


def test_an_import_that_goes_up_is_seen():
    source = "def f():\n    from remap.stages.pretrain import pretrain\n    import remap.predict.catalogue\n"
    assert upward("remap.store.workdir", source) == ["remap.stages.pretrain", "remap.predict.catalogue"]
    assert upward("remap.stages.align", "from remap.autoencoder import network") == ["remap.autoencoder"]
    assert upward("remap.studies.ablate", source) == []
    assert upward("remap.labels", "from remap import load") == ["remap.load"]
