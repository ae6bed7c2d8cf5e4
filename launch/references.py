"""Keeps what predictions are compared with: nearest neighbours in the catalogue, and the flag FAR.

python -m launch.references --config=configs/miles.py --workdir=DIR
"""

from launch import cli
from remap.stages.references import references

CONFIG = cli.define_config()


def main() -> None:
    table = references(CONFIG.value, cli.WORKDIR.value)
    for name in ("usual", "threshold"):
        table[name].info.format = ".3f"
    print("\n".join(table.pformat(max_lines=-1, max_width=-1)))


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
