"""Runs that read text and videos and write text."""
