"""Runs that read text and images and write text and images."""
