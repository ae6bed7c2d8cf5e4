"""The command `remap` of an installed package: what trained networks can do; launch scripts share its flags."""

__all__ = ["flags", "inspect", "main", "networks", "predict", "report", "streaming"]
