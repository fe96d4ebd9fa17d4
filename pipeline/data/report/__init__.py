"""The data report: one page that shows what the ingest understood, rejected and doubts."""

from pipeline.data.report.content import Content, Written, facts_by_split, gather
from pipeline.data.report.page import page

__all__ = ["Content", "Written", "facts_by_split", "gather", "page"]
