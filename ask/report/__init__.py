"""Tables, figures and the report of a run, rendered from cells on disk; never imports torch."""
