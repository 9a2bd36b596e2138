"""Serve the endpoints, one file each: read a request, write an answer."""
