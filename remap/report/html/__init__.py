"""A catalogue as one HTML page that needs no network: tables, figures, and a card for each of some stars."""

from remap.report.html.page import check_report, check_templates, render, summary, write_report
from remap.report.html.records import ArmCard, KnownLabels, LineMark, Neighbour, ReportContent, StarCard

__all__ = [
    "ArmCard",
    "KnownLabels",
    "LineMark",
    "Neighbour",
    "ReportContent",
    "StarCard",
    "check_report",
    "check_templates",
    "render",
    "summary",
    "write_report",
]
