"""Runs that read and write text and whatever media the model has."""
