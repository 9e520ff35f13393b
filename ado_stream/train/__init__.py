"""Batches to a model and its losses."""
