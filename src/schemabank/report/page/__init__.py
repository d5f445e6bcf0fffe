"""A report in the forms that people read: a terminal, Markdown, and a page that opens offline."""

from schemabank.report.page.html import html_page
from schemabank.report.page.markdown import listed, page
from schemabank.report.page.terminal import tables, text

__all__ = ["html_page", "listed", "page", "tables", "text"]
