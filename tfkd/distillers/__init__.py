"""How a training step runs: one method per file."""

from tfkd.distillers.ackd import ACKD
from tfkd.distillers.acn import ACN
from tfkd.distillers.byot import BYOT
from tfkd.distillers.dafl import DAFL
from tfkd.distillers.dfad import DFAD
from tfkd.distillers.distiller import Distiller
from tfkd.distillers.dks import DKS
from tfkd.distillers.iakd import IAKD
from tfkd.distillers.kdcl import KDCL
from tfkd.distillers.knowledge import KnowledgeDistiller
from tfkd.distillers.mutual import MutualDistiller
from tfkd.distillers.okddip import OKDDip
from tfkd.distillers.one import ONE
from tfkd.distillers.pcl import PCL
from tfkd.distillers.sakd import SAKD
from tfkd.distillers.teacher_free import TeacherFree
from tfkd.distillers.tofd import TOFD


def available():
    """Returns `{id: class}` of every method with an id, those that users have defined included."""
    found, classes = {}, [Distiller]
    while classes:
        for cls in classes.pop().__subclasses__():
            classes.append(cls)
            # A method's own subclass inherits its id and does not take its place.
            if cls.__dict__.get("id") is not None:
                found[cls.id] = cls
    return dict(sorted(found.items()))


__all__ = [
    "ACKD",
    "ACN",
    "BYOT",
    "DAFL",
    "DFAD",
    "DKS",
    "IAKD",
    "KDCL",
    "ONE",
    "PCL",
    "SAKD",
    "TOFD",
    "Distiller",
    "KnowledgeDistiller",
    "MutualDistiller",
    "OKDDip",
    "TeacherFree",
    "available",
]
