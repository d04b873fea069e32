"""The metrics that ship, a file each; importing a file registers what is in it."""
