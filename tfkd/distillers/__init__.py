"""How a training step runs: one method per file."""

from tfkd.distillers.ackd import ACKD
from tfkd.distillers.acn import ACN
from tfkd.distillers.distiller import Distiller
from tfkd.distillers.iakd import IAKD
from tfkd.distillers.kdcl import KDCL
from tfkd.distillers.knowledge import KnowledgeDistiller
from tfkd.distillers.mutual import MutualDistiller
from tfkd.distillers.okddip import OKDDip
from tfkd.distillers.one import ONE
from tfkd.distillers.pcl import PCL
from tfkd.distillers.sakd import SAKD
from tfkd.distillers.teacher_free import TeacherFree


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
    "IAKD",
    "KDCL",
    "ONE",
    "PCL",
    "SAKD",
    "Distiller",
    "KnowledgeDistiller",
    "MutualDistiller",
    "OKDDip",
    "TeacherFree",
    "available",
]
