"""One method's decision logic per file, as functions that workflow nodes call."""
