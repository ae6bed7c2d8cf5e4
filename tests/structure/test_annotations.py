"""Every function says what it takes and gives; under pytest the checks of these annotations are on."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "remap").rglob("*.py"))


def bare(source: str) -> list[str]:
    """Parameters without an annotation and functions without one of their result, wherever in a source."""
    found = []
    tree = ast.parse(source)
    methods = {f for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for f in node.body}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = node.args
        static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
        named = [*given.posonlyargs, *given.args][node in methods and not static :]
        named += [*given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        found += [f"{node.name}({arg.arg})" for arg in named if arg.annotation is None]
        found += [f"{node.name} ->"] if node.returns is None else []
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_function_is_annotated(file):
    assert bare(file.read_text()) == []


def test_a_missing_annotation_is_seen():
    source = "class A:\n  def b(self, c: int, *d): ...\n  @staticmethod\n  def e(f) -> None: ...\n"
    assert bare(source) == ["b(d)", "b ->", "e(f)"]
    assert bare("def g(*, h=1) -> None:\n  def i(j: int): ...\n") == ["g(h)", "i ->"]
