"""Runs that read text and write text."""
