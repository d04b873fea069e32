"""Runs that read text and sounds and write text."""
