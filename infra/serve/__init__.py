"""`searchforge serve`: a local web page and JSON endpoint that search published releases through the Task Library.

server.py          binds to 127.0.0.1, starts the workers and shuts them down
application.py     the HTTP routes
guard.py           middlewares: host and origin checks, errors as JSON, security headers
parameters.py      query-string parameters of each route
search_service.py  searches: deduplicated, cached, filtered by metadata
request_error.py   errors that a client receives, with their HTTP status
pool.py            worker threads whose searchers run in child processes, behind a bounded queue
served_release.py  the releases to search
thumbnails.py      JPEG thumbnails of a release's images
static/            the web page
"""
