"""The boundary to the engine process: its messages, sockets and both ends."""
