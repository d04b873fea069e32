"""What people touch after training: an HTTP server and a conversation in the terminal."""
