"""What a plain folder needs: sets of files, names of programs, and a count of other files."""
