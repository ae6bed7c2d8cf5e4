"""Draws t-SNE maps of the embeddings that pre-training saved (`embeddings.epochs` in the config).

python -m launch.visualize --config=configs/miles.py --workdir=DIR
"""

from launch import cli
from remap.stages.visualize import visualize

CONFIG = cli.define_config()


def main() -> None:
    table = visualize(CONFIG.value, cli.WORKDIR.value)
    print("\n".join(table.pformat(max_lines=-1, max_width=-1)))
    print(f"Maps are in {cli.WORKDIR.value}/visualize")


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
