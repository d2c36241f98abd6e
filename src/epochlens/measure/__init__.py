"""Measuring recorded maps: similarity of maps, stability of a run, settling epochs, statistics over seeds.

maps -> similarity (two arrays) -> stability (one run's rows) -> settling, statistics (tables of many runs).
Everything here is arrays and tables in, arrays and tables out: NumPy, SciPy and pandas, nothing else.
"""
