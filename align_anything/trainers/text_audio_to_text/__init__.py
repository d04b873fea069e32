"""Runs that read text and audio clips and write text."""
