"""The HTML report of one or more runs: one file that opens offline."""

from tpt_jax.report.page import write_report

__all__ = ["write_report"]
