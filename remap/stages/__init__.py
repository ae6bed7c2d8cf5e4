"""The stages of the main route, one per file; each takes a config and a working folder."""

__all__ = [
    "align",
    "calibrate",
    "evaluate",
    "finetune",
    "preprocess",
    "pretrain",
    "visualize",
]
