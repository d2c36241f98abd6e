"""Tables become figures, sheets of maps, animations and one self-contained report.

`figures` (with `curves` and `effects`) turns tables into matplotlib figures, `maps` draws the maps
themselves, `words` states the results in sentences and `report` binds everything into one HTML file.
"""
