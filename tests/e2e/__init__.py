"""End-to-end tests: real processes, judged from outside by the command line's contract."""
