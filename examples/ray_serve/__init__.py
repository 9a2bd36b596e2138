"""Serve one address with several engines, each a replica of a Ray Serve application."""
