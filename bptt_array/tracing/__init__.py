"""An elementwise function of Python, written down as operations: run on arrays of symbols, printed as C++."""
