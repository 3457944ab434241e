"""Which judged traces are trained on: a pipeline of named steps, and summaries of the verdicts."""
