"""`searchforge serve`: a local web page and JSON endpoint over published releases, answered by the Task Library.

server.py        binds to 127.0.0.1, starts the workers, ends them
application.py   the routes
guard.py         refuses foreign hosts and origins; errors as JSON; security headers
parameters.py    what a request may say
answers.py       a query's hits: shared, kept for a while, filtered
pool.py          workers, each with searchers in child processes, behind a bounded queue
pictures.py      thumbnails of the corpus' images
source_table.py  where each image lies: a SQLite file, built once
static/          the page
"""
