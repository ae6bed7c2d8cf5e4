"""The autoencoder route (Mas-Buitrago et al. 2024): from library to survey without a labelled star.

`train.train_autoencoders`, `adapt.adapt`, `regress.regress` and `report.report` run in this order, after
`remap.stages.preprocess`; each takes a config and a working folder and resumes what was interrupted.
"""

__all__ = [
    "adapt",
    "errors",
    "estimate",
    "grid_search",
    "inputs",
    "members",
    "network",
    "regress",
    "regressor",
    "report",
    "sources",
    "train",
]
