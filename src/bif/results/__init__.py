"""What a user holds: labelled scores, rankings, sums over groups."""
