"""Where the journal and the inbox live. A store knows nothing of models.

``open_ledger(url)`` picks the store by the URL's scheme and puts an index beside it: in the same
database for SQLite and PostgreSQL, private to this user for everything else.
"""
