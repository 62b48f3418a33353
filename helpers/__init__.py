"""The code that the notebooks share, one topic a module; config.py is the first to read."""
