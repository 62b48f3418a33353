"""For whoever maintains the bundle; nothing in helpers/ or notebooks/ imports it."""

import helpers  # noqa: F401 - first, since it names the Python that lacks a package
