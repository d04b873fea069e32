"""What tests need, of this package and of its users' plugins: tiny checkpoints of every family, made on the spot."""
