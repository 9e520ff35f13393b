"""One object or file to verified bytes on local disk."""
