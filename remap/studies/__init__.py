"""What is learned by training more than once: learning rates, settings compared by folds, ablations."""

__all__ = [
    "ablate",
    "ablate_report",
    "comparison",
    "cross_validate",
    "find_lr",
    "optuna_search",
]
