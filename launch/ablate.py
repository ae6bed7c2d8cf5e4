"""Trains the full model and its variants, several seeds each, and compares them star by star.

python -m launch.ablate --config=configs/miles.py --workdir=DIR [--config.ablate.seeds="(0,1,2,3,4)"]
"""

from pathlib import Path

from launch import cli
from remap.studies.ablate import ablate

CONFIG = cli.define_config()


def main() -> None:
    ablate(CONFIG.value, cli.WORKDIR.value)
    folder = Path(cli.WORKDIR.value) / "ablate"
    print((folder / "summary.md").read_text())
    print(f"Tables and scores per star are in {folder}")


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
