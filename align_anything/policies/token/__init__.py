"""Policies whose unit is a token: layouts, attention by segment, and the chunked log-probability op."""
