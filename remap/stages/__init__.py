"""The stages of the main route, one per file; each takes a config and, but for `fetch_library`, a folder."""

__all__ = [
    "align",
    "calibrate",
    "evaluate",
    "expert",
    "fetch_library",
    "finetune",
    "preprocess",
    "pretrain",
    "references",
    "report",
    "visualize",
]
