"""``make soak``: cachefs under load for half an hour, which must end with the memory and descriptors it began with.

``stage`` has the folders and Plex, ``actors`` and ``people`` who is busy there, ``soak`` runs it, ``figures`` judges.
"""
