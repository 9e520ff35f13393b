"""Losses to mixture: laws, ADO, its rivals, guards."""
