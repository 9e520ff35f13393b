"""ado-stream in other people's training loops, one file each."""
