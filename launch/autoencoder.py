"""The autoencoder route after launch.preprocess: train, adapt to the survey without labels, regress, report.

    python -m launch.autoencoder --config=configs/miles_autoencoder.py --workdir=DIR [--stages=train,adapt]

An interrupted stage goes on where it stopped when the same command is given again. A config with a section
`synthetic` makes its own data first and needs no launch.preprocess. Tables, the catalogue and figures: DIR/bridge.
"""

from pathlib import Path

from absl import flags

from launch import cli
from remap.autoencoder import adapt, regress
from remap.autoencoder.report import report
from remap.autoencoder.train import train_autoencoders
from remap.config import ConfigError
from remap.stages.preprocess import preprocess
from remap.synth.mock import make_mock_data

CONFIG = cli.define_config()
STAGES = ("train", "adapt", "regress", "report")
CHOSEN = flags.DEFINE_list("stages", list(STAGES), f"Which of {', '.join(STAGES)} to run, in this order.")


def main() -> None:
    config, workdir = CONFIG.value, Path(cli.WORKDIR.value)
    unknown = sorted(set(CHOSEN.value) - set(STAGES))
    if unknown:
        raise ConfigError(f"--stages: expected some of {', '.join(STAGES)}, found {', '.join(unknown)}")
    if "synthetic" in config:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data_root = str((workdir / "mock").absolute())
        make_mock_data(workdir / "mock", config.synthetic)
        preprocess(config, workdir)
    steps = {"train": train_autoencoders, "adapt": adapt.adapt, "regress": regress.regress}
    for name, step in steps.items():
        if name in CHOSEN.value:
            step(config, workdir)
    if "report" in CHOSEN.value:
        for table in report(config, workdir):
            print("\n".join(table.pformat(max_lines=-1, max_width=-1)), end="\n\n")
        print(f"Tables, catalogues and figures are in {workdir}/bridge")


if __name__ == "__main__":
    cli.run(main, required=("config", "workdir"))
