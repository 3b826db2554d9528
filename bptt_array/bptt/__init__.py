"""Backpropagation through time over a batch: layers, directions, padding and dropout, segment by segment."""
