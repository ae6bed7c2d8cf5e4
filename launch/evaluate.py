"""Reports bias, scatter and coverage for the survey's labelled stars, with plots.

python -m launch.evaluate --config=configs/miles.py --workdir=DIR
"""

from absl import flags

from launch import cli
from remap.stages.evaluate import brief, evaluate

CONFIG = cli.define_config()
REFERENCES = flags.DEFINE_bool(
    "references",
    True,
    "Compare the stars with what launch.references has kept, if it has: neighbours, and the flag FAR.",
)


def main() -> None:
    table = evaluate(CONFIG.value, cli.WORKDIR.value, references=REFERENCES.value)
    print(brief(table))
    print(f"Tables, catalogues and plots are in {cli.WORKDIR.value}/evaluate")


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
