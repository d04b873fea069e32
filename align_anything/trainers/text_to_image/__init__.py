"""Runs that read text and draw a picture."""
