"""How a training step runs: one method per file."""

from tfkd.distillers.distiller import Distiller
from tfkd.distillers.knowledge import KnowledgeDistiller
from tfkd.distillers.report import Report

__all__ = ["Distiller", "KnowledgeDistiller", "Report"]
