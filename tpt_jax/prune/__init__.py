"""Pure functions of judged traces: which are kept, and summaries of the verdicts."""
