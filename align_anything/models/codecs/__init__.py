"""Codecs: what makes codes of images, audio and videos, and media of codes. One file each, by `model_type`."""
