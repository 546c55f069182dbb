"""The claims ledger: every claim of the paper, evaluated from what a run has measured."""
