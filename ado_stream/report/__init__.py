"""Run records to pictures and one HTML page."""
