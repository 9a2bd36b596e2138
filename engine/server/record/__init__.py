"""The record as the server keeps and serves it: the window, the subscribers, the viewers."""
