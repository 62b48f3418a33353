"""For whoever maintains the bundle; nothing in helpers/ or notebooks/ imports it."""
