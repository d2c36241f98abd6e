"""Tables become figures, sheets of maps, animations and one self-contained report.

`figures` names the functions that turn tables into matplotlib figures: `curves` over epochs, `timing` of
settling, `nulls` and `changes` for what a similarity is worth, `effects` and `forest` for comparisons. `maps`
draws the maps themselves, `words` (with `lags` and `compared`) states the results in sentences and `report`
binds everything into one HTML file.
"""
