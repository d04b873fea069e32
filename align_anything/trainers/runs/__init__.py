"""The wiring of one run, from resolved settings to a saved model."""
