"""A conversation in the terminal, with a checkpoint, two of them, or a server."""
