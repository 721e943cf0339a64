"""Requests and answers over HTTP: what arrives, what is refused, what the OpenAPI document says."""
