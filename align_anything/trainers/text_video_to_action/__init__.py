"""Runs that read an instruction and pictures or videos, and act: vision-language-action models."""
