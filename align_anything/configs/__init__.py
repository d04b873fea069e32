"""Typed settings: the schema, the layers that fill it, and the checks before a run starts."""
