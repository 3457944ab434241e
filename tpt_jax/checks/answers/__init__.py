"""Reading final answers out of traces: numbers, LaTeX, multiple choice."""
