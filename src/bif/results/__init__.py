"""Hold results for users: labelled scores, rankings, sums over groups."""
