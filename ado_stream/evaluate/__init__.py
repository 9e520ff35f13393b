"""Validation, tasks and export of a trained model."""
