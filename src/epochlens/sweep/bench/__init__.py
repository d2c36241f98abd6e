"""The benchmark: one module per part, each yielding comparisons (or sentences) that `command` times."""
