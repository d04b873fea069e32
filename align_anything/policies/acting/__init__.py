"""Models that act as policies: units are actions, each scored by what was seen and done before it."""
