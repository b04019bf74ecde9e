"""The self-contained HTML pages: of a release, of its evaluation, of several runs side by side, of a new machine."""
