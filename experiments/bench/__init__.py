"""Side-by-side benchmarks: the same inputs, one run, the ratio to a named alternative; compilation is not counted."""
