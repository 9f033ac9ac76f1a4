"""What a pruning plan is, and taking its channels out of a network physically."""
