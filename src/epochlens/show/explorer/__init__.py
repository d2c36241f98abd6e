"""A local page over a finished or running sweep: every map of every epoch under one slider.

`command` reads the command line and serves, `app` lays out the pages and wires them. `data` reads the store,
with caches; `pictures` makes PNG of maps, `figures` and `facets` interactive figures; `view` says what a link
means; `pages` and `panels` are the first page, `tables_view` the pages of tables, `model_page` the page that
asks a saved network. `model_view` alone loads networks and explains with them; nothing here trains.
The epoch moves in the browser: the server sends all epochs of the chosen maps as one picture.
"""
