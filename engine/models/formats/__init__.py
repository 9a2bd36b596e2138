"""Recognise, read and convert weight files of formats other than transformers' own."""
