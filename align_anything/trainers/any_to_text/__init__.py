"""Runs that read any mix of text, images, videos and audio and write text."""
