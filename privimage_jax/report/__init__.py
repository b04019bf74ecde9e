"""The self-contained HTML pages: of a release and of its evaluation."""

from privimage_jax.report.page import ReportInputs, render

__all__ = ["ReportInputs", "render"]
