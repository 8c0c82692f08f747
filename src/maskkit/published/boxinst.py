"""BoxInst of AdelaiDet: the network, and the names, of CondInst."""

from maskkit.published.condinst import rename

__all__ = ["rename"]
