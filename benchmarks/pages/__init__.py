"""Tables and pictures of the documentation from the files of results."""
