"""`remap inspect` from a clone: what is in a file.

    python -m launch.inspect FILE ... [--network=NAME | --workdir=DIR] [--survey=NAME] [--plot=PICTURE.png]

`remap.command.inspect` has the rest.
"""

from remap.command import inspect

if __name__ == "__main__":
    inspect.run()
