"""What runs say of themselves: intervals, gates and remedies, where the answer is known."""
