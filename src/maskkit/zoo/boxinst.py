"""BoxInst of AdelaiDet: the network, and the names, of CondInst."""

from maskkit.zoo.condinst import rename

__all__ = ["rename"]
