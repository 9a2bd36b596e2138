"""Connect the server to the engine process: messages, sockets, and both ends."""
