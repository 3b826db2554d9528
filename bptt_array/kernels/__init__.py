"""A whole segment of time in one launch each way: CUDA kernels made from a cell's own Python text."""
