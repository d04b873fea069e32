"""Models composed of encoders, projectors and a language model (docs/composed.md)."""
