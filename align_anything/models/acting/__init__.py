"""Models that act: pictures and a goal in, an action of a robot or a game for each step out, without any tokens."""
