"""`python -m hiermusic`: the command line."""

from hiermusic.cli import main

main()
