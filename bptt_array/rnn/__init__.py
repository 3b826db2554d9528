"""What a user holds: a network, its parameters, its files, and what it may be called with."""
