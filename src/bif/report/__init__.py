"""A self-contained HTML page from saved results: no network, no server, one file."""

from bif.report.page import render_report

__all__ = ["render_report"]
