"""The environments that ship, one file each."""
