"""Where labelled images come from: one file per kind of source, a row each in `specs`."""
