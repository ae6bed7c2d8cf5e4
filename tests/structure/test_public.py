"""What is public: every package says what it offers, all of it is there, and all of it is described."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "remap").rglob("*.py"))


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PACKAGES = [module(file) for file in FILES if file.name == "__init__.py"]


def undescribed(source: str) -> list[str]:
    """The public functions, classes and methods of a module without a docstring, and the module itself."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ["module"]

    def look(body: list[ast.stmt], where: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(where + node.name)
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{where}{node.name}.")

    look(tree.body, "")
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_offers_what_it_says(name):
    package = importlib.import_module(name)
    assert len(package.__all__) == len(set(package.__all__)) > 0
    for public in package.__all__:
        # A module of the package need not have been imported yet.
        if not hasattr(package, public):
            importlib.import_module(f"{name}.{public}")


@pytest.mark.parametrize("file", FILES, ids=module)
def test_everything_public_is_described(file):
    assert undescribed(file.read_text()) == []


def test_a_missing_docstring_is_seen():
    source = '"""A module."""\nclass A:\n    """An a."""\n    def b(self): ...\n    def _c(self): ...\n'
    assert undescribed(source) == ["A.b"]
    assert undescribed("def d(): ...") == ["module", "d"]
