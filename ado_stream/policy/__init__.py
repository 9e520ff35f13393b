"""Losses to mixture: scaling laws, ADO, other policies, guards."""
