"""Facts about the files of one model, read from the disk alone: nothing here knows a database."""
