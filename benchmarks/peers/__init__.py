"""The peers: other engines on the same machine, given the same weights and the same requests."""
