"""Self-contained HTML pages from saved results: no network, no server, one file each."""

from bif.report.page import render_report
from bif.report.token_page import render_token_report

__all__ = ["render_report", "render_token_report"]
