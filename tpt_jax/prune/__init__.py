"""Pure functions of judged traces: which are kept, and what the verdicts add up to."""
