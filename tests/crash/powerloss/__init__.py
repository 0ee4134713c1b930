"""The power cut, on a recording: every order in which the disk may have kept what the cache did.

``scenario`` runs the store in a process of its own under ``shim.c``, which writes down each call that changes the cache
folder, SQLite's included, with its data. ``recording`` reads that. ``disk`` (pure) says what may be on the disk when
the power goes after any of the calls; ``replay`` makes each such folder, lets recovery at it, and compares.

The same of files that move: ``moving`` is recorded in a ``house`` of a source and an SSD, ``worlds`` (pure) says which
files there may be, and ``rebuilt`` brings all of them home.
"""
