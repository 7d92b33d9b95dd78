"""Where artifact bytes live: a content-addressed store, a cache of it, and folders made from it."""
