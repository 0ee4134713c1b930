"""``make bench``: how fast cachefs is, beside the native folder and other file systems of its kind."""
