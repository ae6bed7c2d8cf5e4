"""The command `remap` of an installed package: what trained networks can do; launch scripts share its flags."""

__all__ = ["flags", "main"]  # the others define flags of the same names: one command at a time
