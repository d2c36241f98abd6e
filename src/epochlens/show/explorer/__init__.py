"""A local page over a finished or running sweep: every map of every epoch under one slider.

`command` reads the command line and serves, `app` knows the pages and looks at the store, `wiring` makes
functions callbacks. `data` reads the store, with caches; `view` says what a link means; `parts` are what
pages share; `pictures` makes PNG of maps; `figures`, `facets` and `overviews` make interactive figures.
The first page: `maps_page` lays it out, `maps_drawing` fills it from `answer` (when maps settle, in words),
`panels` (maps and curves) and `probabilities`; `exports` saves what it shows. `pages` and `tables_view` are
the pages of tables. `cost_page` tells what methods cost, `cost_view` counts it. `model_page` asks a saved
network, which `model_view` loads and explains, `model_drawing` shows what it tells, and `patience` lets slow
methods wait. Code that the results name is not run unasked. Nothing here trains.
The epoch moves in the browser: the server sends all epochs of the chosen maps as one picture.
"""
