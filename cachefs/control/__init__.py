"""How the command line and other programs talk to the running daemon."""
