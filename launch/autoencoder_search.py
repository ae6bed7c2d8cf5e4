"""Grid search over width, L1 weight and rate of the autoencoder; prints the members to use.

python -m launch.autoencoder_search --config=configs/miles_autoencoder.py --workdir=DIR
"""

from launch import cli
from remap.autoencoder.grid_search import search

CONFIG = cli.define_config()


def main() -> None:
    table = search(CONFIG.value, cli.WORKDIR.value)
    print("\n".join(table.pformat(max_lines=-1, max_width=-1)))
    best = table[: CONFIG.value.search.best]
    members = tuple((int(r["width"]), float(r["l1"]), float(r["rate"])) for r in best)
    print(f'--config.autoencoder.members="{members}"')


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
