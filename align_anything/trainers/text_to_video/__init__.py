"""Runs that read text and make a video."""
