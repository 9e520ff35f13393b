"""A package, so that `tests` is this folder whatever a site-packages folder holds."""
