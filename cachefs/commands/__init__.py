"""The commands, and what they share. Called by ``cli`` only, which runs them."""
