"""Runs that read any mix of text, images, videos and sounds and write text."""
