"""What the documents name is there."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/catalogue.md",
    "docs/design.md",
    "docs/export.md",
    "docs/libraries.md",
    "docs/neighbors.md",
    "docs/report.md",
    "docs/surveys.md",
    "docs/your_survey.md",
    "benchmarks/README.md",
)
PLACES = re.compile(r"`((?:remap|launch|configs|benchmarks|tests|docs)/[\w./]*)`")
NAMES = re.compile(r"`((?:remap|launch|benchmarks)(?:\.\w+)+)`")
LINKS = re.compile(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)")


def missing_names(text: str) -> list[str]:
    """Dotted names in a text that are neither a module nor something in one."""
    return [name for name in NAMES.findall(text) if not there(name)]


def there(name: str) -> bool:
    """Whether a dotted name can be found, without importing more than packages."""
    parent, _, last = name.rpartition(".")
    if importlib.util.find_spec(parent) is None:
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent is no package
        return hasattr(importlib.import_module(parent), last)


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a Markdown text, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCS)
def test_files_that_a_document_names_are_there(document):
    text = (ROOT / document).read_text()
    assert [place for place in PLACES.findall(text) if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("document", DOCS)
def test_modules_that_a_document_names_are_there(document):
    assert missing_names((ROOT / document).read_text()) == []


@pytest.mark.parametrize("document", [*DOCS, "benchmarks/results.md"])
def test_links_of_a_document_lead_somewhere(document):
    path = ROOT / document
    for target, anchor in LINKS.findall(path.read_text()):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), anchor


def test_new_import_paths_of_the_changelog_are_there():
    rows = re.findall(r"^\| `remap.*\| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert rows
    assert [name for row in rows for name in missing_names(row)] == []


def test_a_name_that_is_not_there_is_seen():
    text = "`remap.continuum`, `remap.workdir`, `remap.pmf.metrics.crps`, `remap.labels.no_such`"
    assert missing_names(text) == ["remap.workdir", "remap.labels.no_such"]


def test_every_benchmark_is_listed():
    text = (ROOT / "benchmarks/README.md").read_text()
    scripts = [file.stem for file in (ROOT / "benchmarks").glob("bench_*.py")]
    assert [s for s in scripts if f"`{s}.py`" not in text or f"python -m benchmarks.{s} " not in text] == []


def test_the_readme_lists_every_config_launch_script_and_package():
    text = (ROOT / "README.md").read_text()
    layout = text[text.index("## Layout") : text.index("## Citing")]
    words = set(re.findall(r"\w+", layout))
    there = {file.stem for top in ("configs", "launch") for file in (ROOT / top).glob("*.py")}
    there |= {file.stem for file in (ROOT / "remap").iterdir() if file.suffix in ("", ".py")}
    # Not for users, or a part of the others.
    assert {name for name in there - words if not name.startswith("_")} <= {"cli"}


def test_python_of_the_readme_names_what_is_there():
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    tree = ast.parse(code)
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported
    names: dict[str, object] = {}
    exec(compile(ast.Module(imported, []), "README.md", "exec"), names)
    used = {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "remap"
    }
    assert used
    assert [name for name in used if not hasattr(names["remap"], name)] == []
