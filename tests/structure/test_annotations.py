"""Every function says what it takes and gives; under pytest the checks of these annotations are on."""

import ast
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from remap.continuum import ContinuumSettings, normalize
from remap.labels import soft_labels
from remap.synth.instrument import line_spread

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


def test_a_wrong_rank_is_refused():
    with pytest.raises(TypeCheckError, match="flux"):
        normalize(jnp.ones((2, 50)), jnp.ones((2, 50), bool))


def test_sizes_that_do_not_agree_are_refused():
    values, edges = jnp.zeros((5, 2)), jnp.linspace(0, jnp.ones(3), 4).T
    with pytest.raises(TypeCheckError, match="edges"):
        soft_labels(values, jnp.ones((5, 2)), edges)
    fine = np.linspace(5000, 5010, 101)
    with pytest.raises(TypeCheckError, match="fwhm"):
        line_spread(fine, np.ones(101), wave=fine[40:60], fwhm=np.ones(19))


def test_a_field_of_the_wrong_type_is_refused():
    with pytest.raises(TypeCheckError, match="degree"):
        ContinuumSettings(degree="6")
    assert ContinuumSettings(sigma=15).sigma == 15.0  # an int is a float


@pytest.mark.usefixtures("unchecked")
def test_the_checks_can_be_off():
    with pytest.raises(ValueError, match="at least 44 pixels"):
        normalize(np.ones(43), np.ones(43, bool))
