"""record: the store of maps and metrics on disk, and the tracker that fills it.

`store` commits, `ledger` is what it commits to, `retrieval` reads what is committed; `files` makes a file
appear whole, `tables` are its formats; `remote` and `objects` mirror results to object storage.
"""
