"""The edge: command line and Python API."""
