"""`python -m align_anything.cli`, for launchers that want a module."""

from align_anything.cli.main import main

main()
