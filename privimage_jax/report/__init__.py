"""The self-contained HTML pages: of a release, of its evaluation, and of several runs side by side."""

from privimage_jax.report.page import ReportInputs, render

__all__ = ["ReportInputs", "render"]
