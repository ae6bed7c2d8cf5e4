"""The stages of the main route, one per file; each takes a config and a working folder, the first the config alone."""

__all__ = [
    "align",
    "calibrate",
    "evaluate",
    "fetch_library",
    "finetune",
    "preprocess",
    "pretrain",
    "visualize",
]
