"""The self-contained HTML page of a release."""

from privimage_jax.report.page import ReportInputs, render

__all__ = ["ReportInputs", "render"]
