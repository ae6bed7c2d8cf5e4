"""The API reference as a site: a page per package, made of its `__all__` and the docstrings.

    pip install -e '.[docs]'
    python docs/reference.py SITE

A reference that leads nowhere, or a name that is not found, ends it with an error.
"""

import importlib
import inspect
import pkgutil
import sys
import tempfile
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

import remap

ROOT = Path(__file__).resolve().parents[1]


def pages() -> dict[str, list[str]]:
    """Every package and public module right under `remap`: what its page shows, by full names."""
    shown = {}
    for found in pkgutil.iter_modules(remap.__path__):
        if not found.name.startswith("_"):
            name = f"remap.{found.name}"
            public = getattr(importlib.import_module(name), "__all__", None)
            shown[name] = [name] if public is None else [f"{name}.{each}" for each in public]
    return shown


def face(shown: dict[str, list[str]]) -> list[str]:
    """Links to what `remap` itself exports, which has its place on the page of a package or module."""
    lines = []
    for name in remap.__all__:
        if not name.startswith("_"):
            value = getattr(remap, name)
            homes = [f"{page}.{name}" for page, public in shown.items() if f"{page}.{name}" in public]
            home = homes[0] if homes else f"{value.__module__}.{name}"
            lines.append(f"- [`remap.{name}`][{home}]")
    return lines


def main(site: str) -> None:
    """Writes the pages into a temporary folder and the site into `site`."""
    with tempfile.TemporaryDirectory() as folder:
        shown = pages()
        index = [f"# remap {remap.__version__}", inspect.cleandoc(remap.__doc__)]
        for name, public in shown.items():
            about = "" if public == [name] else inspect.cleandoc(importlib.import_module(name).__doc__)
            text = "\n\n".join([f"# {name}", about, *(f"::: {each}" for each in public)])
            (Path(folder) / f"{name}.md").write_text(text + "\n")
        index += ["## Exported by `remap` itself", "\n".join(face(shown)), "## Packages"]
        index.append("\n".join(f"- [{name}]({name}.md)" for name in shown))
        (Path(folder) / "index.md").write_text("\n\n".join(index) + "\n")
        config = load_config(
            config_file=str(ROOT / "docs" / "mkdocs.yml"),
            docs_dir=folder,
            site_dir=str(Path(site).resolve()),
            nav=[{"remap": "index.md"}, *({name: f"{name}.md"} for name in shown)],
        )
        build(config)


if __name__ == "__main__":
    main(sys.argv[1])
