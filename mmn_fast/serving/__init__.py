"""A web service for one machine: grounds sentences, searches an index, and shows a page. `mmn-fast serve` starts it.

`app.create_app` makes the FastAPI application; `batching` puts concurrent requests into one call of the engine. The
extra `serve` installs what it needs.
"""
